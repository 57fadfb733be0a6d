"""A federation's settings, small files, and a coordinator that follows a script, on a real socket."""

import contextlib
import importlib.util
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.server import Server, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from protocol.messages import (
    MAX_MESSAGE,
    SUBPROTOCOL,
    Accepted,
    Bye,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Hello,
    Refuse,
    Rejected,
    Train,
    Update,
    Want,
    Welcome,
)
from protocol.session import BlobReceived, Session
from protocol.tensors import digest_of
from protocol.transfer import Incoming
from tap_core.settings.federation import FederationConfig


@pytest.fixture
def federation() -> FederationConfig:
    """A federation with a task of every kind."""
    return FederationConfig.model_validate(
        {
            "name": "demo",
            "foundation": "tiny",
            "seed": 7,
            "rounds": {"total": 3},
            "tasks": {
                "animals": {"kind": "image_classification", "inputs": ["image"], "classes": ["cat", "dog"]},
                "topic": {"kind": "text_classification", "inputs": ["text"], "classes": ["sport", "food", "art"]},
                "question": {"kind": "text_generation", "inputs": ["image", "text"]},
                "redraw": {"kind": "image_generation", "inputs": ["image"]},
                "marks": {"kind": "multilabel", "inputs": ["text"], "classes": ["red", "round"]},
                "price": {"kind": "regression", "inputs": ["text"]},
                "draw": {"kind": "image_generation", "inputs": ["text"]},
            },
        }
    )


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Write a small image of one colour; returns its path."""

    def write(name: str, colour: int = 0, mode: str = "RGB") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 8, 3), colour, np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


class FakeCoordinator:
    """The other end of the wire, on a real socket: one device, `rounds` rounds, each new value is the device's update.

    It says the right thing at the right time unless told otherwise: ``cuts`` lists moments (an event's type, or
    "chunk in" and "chunk out" for the middle of a transfer) at each of which, once, in order, the connection is cut.
    """

    token = "good-token"

    def __init__(self, settings: str, blobs: dict[str, bytes], rounds: int = 3):
        self.settings, self.blobs, self.rounds = settings, dict(blobs), rounds
        self.cuts: list[str] = []
        self.refuse: Refuse | None = None
        self.reject_code = "late"
        self.reject_round: int | None = None
        self.declined: list[Decline] = []
        self.after_decline: dict[str, bytes] | None = None
        """The next round's values, if the device declines; None asks for the same round again."""
        self.goodbyes: list[str] = []
        """Codes with which the next sessions end at once."""
        self.round = 0
        self.done = False
        self.home: tuple[str, ...] = ()
        """What stays at home in the rounds before ``home_until``."""
        self.home_until = rounds
        self.versions = dict.fromkeys(blobs, 0)
        self.hellos: list[Hello] = []
        self.events: list[str] = []
        self.accepted: dict[int, dict[str, bytes]] = {}
        self.fetched: list[str] = []
        self.sent = self.received = 0
        self.partial: dict[str, Incoming] = {}
        self._server: Server | None = None

    async def start(self, port: int = 0) -> str:
        self._server = await serve(
            self._converse,
            "127.0.0.1",
            port,
            subprotocols=[SUBPROTOCOL],
            compression=None,
            max_size=MAX_MESSAGE,
            process_request=self._check,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return f"ws://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _check(self, connection, request):
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no\n")
        return None

    def _refs(self) -> tuple[ComponentRef, ...]:
        return tuple(
            ComponentRef(name=name, version=self.versions[name], digest=digest_of(data), size=len(data))
            for name, data in sorted(self.blobs.items())
        )

    async def _converse(self, socket) -> None:
        session = Session("coordinator", partial=self.partial, chunk_size=64)
        with contextlib.suppress(ConnectionClosed):
            await self._talk(socket, session)

    async def _talk(self, socket, session: Session) -> None:
        wanted: dict[str, int] = {}
        update: Update | None = None
        arrived: dict[str, bytes] = {}

        async def say(message) -> None:
            await transmit(session.send(message))

        async def transmit(data: bytes) -> None:
            await socket.send(data)
            self.sent += len(data)

        async def cut(moment: str) -> None:
            if self.cuts and self.cuts[0] == moment:
                self.cuts.pop(0)
                socket.transport.abort()
                raise ConnectionClosedError(None, None)

        async def assign() -> None:
            home = self.home if min(self.round, self.rounds - 1) < self.home_until else ()
            if self.round < self.rounds:
                await say(Train(round=self.round, deadline=60.0, components=self._refs(), home=home))
            else:
                await say(Finish(components=self._refs(), home=home))

        async def settle() -> None:
            """All blobs of the update are here: take it, and go on."""
            nonlocal update
            assert update is not None
            await cut("before accepted")
            if self.reject_round == update.round:
                self.reject_round = None
                await say(Rejected(round=update.round, code=self.reject_code, why="the round is closed"))
            else:
                self.accepted[update.round] = {ref.name: arrived[ref.digest] for ref in update.components}
                self.blobs |= self.accepted[update.round]
                self.versions |= dict.fromkeys(self.accepted[update.round], update.round + 1)
                await say(Accepted(round=update.round))
            update = None
            self.round += 1
            await cut("after accepted")
            await assign()

        async for data in socket:
            self.received += len(data)
            before = len(self.partial)
            events = session.receive(data)
            if not events and before:
                await cut("chunk in")
            for event in events:
                name = "blob" if isinstance(event, BlobReceived) else event.type
                self.events.append(name)
                await cut(name)
                match event:
                    case Hello():
                        self.hellos.append(event)
                        if self.refuse is not None:
                            await say(self.refuse)
                            return
                        owned = tuple(sorted(self.blobs)) if event.tasks else ()
                        await say(Welcome(session="s1", settings=self.settings, owned=owned))
                        if not event.tasks:
                            return
                        if self.goodbyes:
                            await say(Bye(code=self.goodbyes.pop(0)))
                            return
                        await assign()
                    case Fetch():
                        by_digest = {digest_of(blob): blob for blob in self.blobs.values()}
                        for digest, offset in zip(event.digests, event.offsets, strict=True):
                            self.fetched.append(digest)
                            for chunk in session.send_blob(digest, by_digest[digest], offset):
                                await transmit(chunk)
                                await cut("chunk out")
                    case Decline():
                        self.declined.append(event)
                        if self.after_decline is not None and len(self.declined) > 1:
                            self.blobs, self.round = dict(self.after_decline), self.round + 1
                        await assign()
                    case Update():
                        update = event
                        wanted = {ref.digest: ref.size for ref in event.components}
                        for digest in [d for d in wanted if d in arrived]:
                            del wanted[digest]
                        for digest, size in wanted.items():
                            await say(Want(digest=digest, offset=session.expect(digest, size)))
                        if not wanted:
                            await settle()
                    case BlobReceived():
                        arrived[event.digest] = event.data
                        del wanted[event.digest]
                        if not wanted:
                            await settle()
                    case Done():
                        self.done = True
                        await say(Bye(code="done"))
                        await socket.close()
                        return


@pytest.fixture
def device_process():
    """The module tests/edge_client/device_process.py."""
    path = Path(__file__).with_name("device_process.py")
    spec = importlib.util.spec_from_file_location("device_process", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def coordinator(federation: FederationConfig) -> FakeCoordinator:
    blobs = {"decoder/topic": b"0123456789abcdef" * 32, "encoder/text": b"fedcba9876543210" * 16}
    return FakeCoordinator(federation.model_dump_json(), blobs)


@pytest.fixture
def client_toml(tmp_path: Path) -> Callable[..., Path]:
    """Write the settings of a device that joins ``address``; returns their path."""

    def write(address: str, *, token: str = FakeCoordinator.token, more: str = "") -> Path:
        (tmp_path / "token").write_text(token + "\n")
        (tmp_path / "token").chmod(0o600)
        (tmp_path / "topics.csv").write_text("text,target\n" + "".join(f"text {i},art\n" for i in range(9)))
        path = tmp_path / "client.toml"
        path.write_text(
            f'coordinator = "{address}"\nfederation = "demo"\ndevice_id = "kitchen"\ntoken_file = "token"\n'
            f'state_dir = "state"\nfoundation = "./foundation"\n{more}\n[tasks.topic]\ntrain = "topics.csv"\n'
        )
        return path

    return write
