"""The other ends of `round_overhead.py`: a device that hardly trains, and a bare websockets echo.

Each runs in a process of its own and takes orders through a pipe. The device speaks the real protocol, the echo none.
"""

import asyncio
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from protocol.messages import CHUNK, MAX_MESSAGE, SUBPROTOCOL, ComponentRef, Done, Fetch, Finish, Hello, Train, Update
from protocol.session import BlobReceived, Session
from protocol.tensors import digest_of
from tap_core.components import examples_per_component
from tap_core.manifest import FederationManifest, load_manifest

LIMITS: dict[str, Any] = {"compression": None, "max_size": MAX_MESSAGE, "write_limit": 4 * CHUNK}


def cut(transport: asyncio.WriteTransport) -> None:
    """End a connection without a word."""
    if not transport.is_closing():  # a transport that has closed has no event loop any more
        transport.abort()


def run_device(directory: Path, name: str, token: str, orders: "Connection") -> None:
    """Serve the orders ("echo", port) and ("federation", port), and answer each with the bytes moved; None ends it."""
    manifest = load_manifest(directory)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        what, port = order
        url = f"ws://127.0.0.1:{port}"
        work = echo_once(url, manifest) if what == "echo" else Device(manifest, name).take_part(url, token)
        orders.send(asyncio.run(work))


class Device:
    """A real session whose training does nothing but change a few bits of each component."""

    connecting: dict[str, Any] = LIMITS
    """What is given to `websockets.connect` beside the address and the token."""

    def __init__(self, manifest: FederationManifest, name: str):
        self.manifest, self.name = manifest, name
        self.mark = int(name.rpartition("-")[2]) + 1
        self.tasks = {task: 10 * self.mark for task in manifest.config.tasks}
        self.session = Session("device")
        self.bytes = 0

    async def take_part(self, url: str, token: str) -> int:
        """From hello to bye; returns the bytes moved."""
        headers = {"Authorization": f"Bearer {token}"}
        subprotocols: Any = [SUBPROTOCOL]
        async with connect(url, additional_headers=headers, subprotocols=subprotocols, **self.connecting) as socket:
            await self.send(socket, self.session.send(self.hello()))
            while (message := await self.hear(socket)).type != "bye":
                match message:
                    case Train():
                        await self.take_round(socket, message)
                    case Finish(components=components):
                        await self.fetch(socket, components)
                        await self.send(socket, self.session.send(Done()))
        return self.bytes

    def hello(self) -> Hello:
        facts = {"device": self.name, "federation": self.manifest.config.name, "tasks": self.tasks}
        return Hello(**facts, foundation=self.manifest.foundation_digest, schema_version=self.manifest.schema_version)

    async def take_round(self, socket: ClientConnection, train: Train) -> None:
        trained = self.train(train.round, await self.fetch(socket, train.components))
        answer = await self.report(socket, train.round, trained)
        assert answer.type == "accepted", answer

    async def send(self, socket: ClientConnection, data: bytes) -> None:
        self.bytes += len(data)
        await socket.send(data)

    async def hear(self, socket: ClientConnection) -> Any:
        while True:
            data = await socket.recv(decode=False)
            self.bytes += len(data)
            for event in self.session.receive(data):
                return event

    async def fetch(self, socket: ClientConnection, refs: tuple[ComponentRef, ...]) -> dict[str, bytes]:
        offsets = {ref.digest: self.session.expect(ref.digest, ref.size) for ref in refs}
        request = Fetch(digests=tuple(offsets), offsets=tuple(offsets.values()))
        await self.send(socket, self.session.send(request))
        blobs: dict[str, bytes] = {}
        while len(blobs) < len(offsets):
            event = await self.hear(socket)
            assert isinstance(event, BlobReceived)
            blobs[event.digest] = event.data
        return {ref.name: blobs[ref.digest] for ref in refs}

    def train(self, number: int, components: dict[str, bytes]) -> dict[str, bytes]:
        """The least training there is: change the last value of each component a little, and always about as much (an
        update far larger than those before it would be rejected)."""
        mask = 1 + (7 * number + self.mark) % 255
        return {
            name: b"".join((data[:-4], bytes([data[-4] ^ mask, data[-3] ^ 4]), data[-2:]))
            for name, data in components.items()
        }

    async def report(self, socket: ClientConnection, number: int, trained: dict[str, bytes]) -> Any:
        """Send an update and what is wanted of it; returns the answer: accepted or rejected."""
        digests = {name: digest_of(data) for name, data in trained.items()}
        by_digest = {digest: trained[name] for name, digest in digests.items()}
        refs = tuple(
            ComponentRef(name=name, version=number, digest=digests[name], size=len(data))
            for name, data in trained.items()
        )
        owned = self.manifest.config.tasks_named(self.tasks)
        examples = examples_per_component(owned, self.tasks)
        await self.send(socket, self.session.send(Update(round=number, examples=examples, components=refs)))
        while (event := await self.hear(socket)).type == "want":
            for chunk in self.session.send_blob(event.digest, by_digest[event.digest], event.offset):
                await self.send(socket, chunk)
        return event


def echo_messages(manifest: FederationManifest) -> Iterator[int]:
    """Sizes of the messages: an upload, in the largest messages that the protocol allows."""
    for spec in manifest.components.values():
        yield from (min(CHUNK, spec.size - start) for start in range(0, spec.size, CHUNK))


async def echo_once(url: str, manifest: FederationManifest) -> int:
    """Send each message of an upload and wait until it is back; returns the bytes moved."""
    block, moved = os.urandom(CHUNK), 0
    async with connect(url, **LIMITS) as socket:
        for size in echo_messages(manifest):
            await socket.send(block[:size])
            moved += size + len(await socket.recv())
    return moved


def run_echo_server(orders: "Connection") -> None:
    """Send the port; serve until something comes back."""

    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async def main() -> None:
        async with serve(echo, "127.0.0.1", 0, **LIMITS) as server:
            orders.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.to_thread(orders.recv)

    asyncio.run(main())
