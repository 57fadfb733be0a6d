"""One connection of one device, from its hello to its end: messages in, messages out.

The hello is checked before the welcome, an update before anything is asked for, and whenever the device is idle it is
given what `Federation.assignment` says. Nothing that blocks (disk, checks of tensors, database) runs on the event loop.
It knows the protocol's session and a `Peer` that carries bytes; it does not know sockets, nor how rounds are made up.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import structlog

from coordinator.assignments import Finishing, Training
from coordinator.blobs import BlobError
from coordinator.checks import Membership, Unacceptable, check_hello
from coordinator.federation import Federation
from coordinator.limits import Bucket
from coordinator.link import Gone, Link, Peer
from coordinator.transfers import Budget, Holding, left_behind, put_away, take_up
from coordinator.uploads import Upload
from coordinator.versions import Version
from protocol.codes import ByeCode, CloseCode, RefusalCode, RejectionCode
from protocol.errors import RemoteProtocolError
from protocol.messages import (
    Accepted,
    AnyMessage,
    Bye,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Heartbeat,
    Hello,
    Refuse,
    Rejected,
    Train,
    Update,
    Want,
    Welcome,
)
from protocol.names import ComponentName as WireName
from protocol.names import Digest
from protocol.session import BlobReceived, Session
from tap_core.names import ComponentName

HELLO_SECONDS = 20.0
"""How long a device with a valid token may take to say hello."""

BYE_SECONDS = 2.0
"""How long a bye may take before the connection is cut."""

HEARTBEATS_AT_ONCE, HEARTBEATS_A_SECOND = 60, 1.0
"""What a connection may send; devices send one in five seconds."""

TROUBLE = "the coordinator cannot go on with this connection at the moment; connect again"

LARGE_MESSAGE = 512 * 1024
"""Bytes from which a message is taken apart in a thread."""

log = structlog.get_logger("coordinator.device_session")


SENT_AT_ONCE = 2 * 1024 * 1024
"""Bytes of small blobs that are read and sent together."""

STALL_SECONDS = 60.0
LEAST_PROGRESS = 64 * 1024
"""Bytes that must arrive within STALL_SECONDS while an upload holds memory."""

Background = Callable[[Coroutine[Any, Any, None]], None]
"""Runs work that nobody waits for."""


class Stalled(Exception):
    """The device was asked for a blob and sends next to nothing."""


class TooOften(Exception):
    """The device does what it may do, but far too often; the text: what."""


class DeviceSession:
    """One connection of one device, from its hello to its end."""

    def __init__(
        self, federation: Federation, link: Link, peer: Peer, token: str, background: Background, budget: Budget
    ):
        """``token``: the digest of the one in the handshake. ``budget``: bytes in memory of all transfers."""
        self._budget, self._holding, self._asking = budget, Holding(budget), asyncio.Queue[tuple[Upload, Digest, int]]()
        self.federation, self.link, self.peer, self.token = federation, link, peer, token
        self.session = Session("coordinator", partial=link.partial)
        self.wake = asyncio.Event()
        self._membership: Membership | None = None
        self._upload: Upload | None = None
        self._sent: Mapping[ComponentName, Version] = {}
        self._fetched: asyncio.Queue[Fetch] = asyncio.Queue()  # the session bounds what may be asked for
        self._sending = asyncio.Lock()
        self._over = False
        self._completed = False
        self._parts: set[Digest] = set()
        self._received_before, self._looked_at = 0, time.monotonic()  # when the device was last seen to get on
        self._background = background
        self._beats = Bucket(HEARTBEATS_AT_ONCE, HEARTBEATS_A_SECOND, time.monotonic())
        self._log = log.bind(device=link.device)

    @property
    def membership(self) -> Membership:
        assert self._membership is not None, "only after the hello"
        return self._membership

    async def run(self) -> None:
        """Talk until either side ends the connection."""
        try:
            await self._talk()
        except Exception as error:  # the boundary: whatever goes wrong for one device ends its connection, no more
            self._log.error("connection dropped", error=f"{type(error).__name__}: {error}")
            await self._hang_up(CloseCode.TROUBLE, TROUBLE)
        finally:
            await self._leave()

    async def _talk(self) -> None:
        try:
            if await self._greet():
                works = (self._listen(), self._offer(), self._send_fetched(), self._ask(), self._watch_progress())
                await self._first_to_end(*works)
        except RemoteProtocolError as error:
            self._log.warning("protocol error", why=str(error), close_code=error.close_code)
            await self._hang_up(error.close_code, str(error)[:100])
        except Stalled:
            self._log.warning("an upload stands still", seconds=STALL_SECONDS)
            await self._hang_up(CloseCode.POLICY, f"an upload made no progress in {STALL_SECONDS:g} s; connect again")
        except TooOften as error:
            self._log.warning("too often", what=str(error))
            await self._hang_up(CloseCode.POLICY, f"too many {error}")
        except Gone:
            pass

    async def _hang_up(self, code: int, reason: str) -> None:
        try:
            await self.peer.close(code, reason)
        except Exception:  # whatever keeps it from being closed in good order
            self.peer.abort()

    async def end(self, code: ByeCode, close_code: CloseCode) -> None:
        """Say bye, if that is possible, and close. The session hears nothing more, whatever still arrives."""
        self._over = True
        code = ByeCode.DONE if self._completed else code  # the service may be stopping because everybody is done
        try:
            await asyncio.wait_for(self._send(Bye(code=code.value)), BYE_SECONDS)
            await self.peer.close(close_code, code.value)
        except (asyncio.TimeoutError, Gone):
            self.peer.abort()

    async def _first_to_end(self, *works: Coroutine[Any, Any, None]) -> None:
        """Run the works until one ends, then cancel the others; raises what it raised."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self) -> None:
        self._over = True
        self.session.connection_lost()
        self._holding.end()
        if self.link.session is self and self.link.partial:
            partial, self.link.partial = self.link.partial, {}
            try:
                await asyncio.to_thread(put_away, self.federation.blobs, self.link.device, partial, time.time())
            except Exception as error:  # the same boundary; the device sends it again
                self._log.error("cannot keep part of an upload", error=f"{type(error).__name__}: {error}")
        if self.link.session is self:
            self.link.session = None
            self.link.phase, self.link.step, self.link.steps = "", 0, 0
            self.federation.metrics.connected.dec()
            self._log.info("disconnected")
            try:
                await self.federation.leave(self.link.device)
            except Exception as error:  # the same boundary; a later connection, or its end, tells the machine again
                self._log.error("cannot record that it left", error=f"{type(error).__name__}: {error}")

    # hello

    async def _greet(self) -> bool:
        """Hello and welcome; False if that was all: the device was refused, or only looks at the settings."""
        try:
            data = await asyncio.wait_for(self.peer.receive(), HELLO_SECONDS)
        except asyncio.TimeoutError:
            await self._hang_up(CloseCode.POLICY, f"no hello within {HELLO_SECONDS:g} s")
            return False
        hello = await self._take(data)
        if not isinstance(hello, Hello):
            raise RemoteProtocolError("the first message must be a hello")
        try:
            if not await self.federation.tokens.is_valid(self.link.device, self.token):  # the handshake may be long ago
                raise Unacceptable(
                    RefusalCode.REVOKED, "the token was revoked or replaced", "ask the operator for a new one"
                )
            enrolment = self.federation.enrolment(self.link.device)
            self._membership = check_hello(hello, self.link.device, self.federation.manifest, enrolment)
        except Unacceptable as error:
            self.federation.metrics.refused.labels(error.code).inc()
            self._log.warning("refused", code=error.code, why=error.why)
            await self._send(Refuse(code=error.code, why=error.why[:1024], fix=error.fix[:1024]))
            await self.peer.close(CloseCode.POLICY, error.code)
            return False
        if is_member := bool(self.membership.tasks):  # else its other connection, which may be training, goes on
            self._replace_older()
        settings = self.federation.manifest.config.model_dump_json()
        self.peer.welcome()
        await self._send(
            Welcome(session=secrets.token_hex(8), settings=settings, owned=_wire_names(self.membership.owned))
        )
        if not is_member:
            await self.peer.close(CloseCode.NORMAL, "no member")
            return False
        self._log.info("connected", address=self.peer.address, tasks=self.membership.tasks)
        self.wake.set()
        await self.federation.join(self.link.device, self.membership)
        return True

    def _replace_older(self) -> None:
        older, self.link.session = self.link.session, self
        if older is None:
            self.federation.metrics.connected.inc()
            return
        self._log.warning("a newer connection of the device replaces the older")
        older._over = True
        self._background(older.end(ByeCode.REPLACED, CloseCode.POLICY))

    # what the device hears

    async def _send(self, message: AnyMessage) -> None:
        async with self._sending:
            if self.session.state != "closed":  # a bye may have come in between
                await self._transmit(self.session.send(message))

    async def _transmit(self, data: bytes) -> None:
        self.link.bytes_sent += len(data)
        self.federation.metrics.sent.inc(len(data))
        await self.peer.send(data)

    async def _offer(self) -> None:
        """Whenever the device is idle, tell it what to do, if there is something."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            if self.session.state != "idle":
                continue
            match self.federation.assignment(self.link.device, self.membership.owned):
                case Training(number, _, seconds, components, home):
                    self._sent = {name: version for name, version in components.items() if name not in home}
                    await self._send(
                        Train(round=number, deadline=seconds, components=_refs(components), home=_wire_names(home))
                    )
                case Finishing(components, home):
                    await self._send(Finish(components=_refs(components), home=_wire_names(home)))

    async def _send_fetched(self) -> None:
        """Beside the listening: a device whose messages are not received for long is taken for gone."""
        while True:
            await self._send_blobs(await self._fetched.get())

    async def _send_blobs(self, fetch: Fetch) -> None:
        asked = list(zip(fetch.digests, fetch.offsets, strict=True))
        sizes = {version.digest: version.size for version in self.federation.versions.values()}
        while asked:
            async with self._budget.hold(max(SENT_AT_ONCE, sizes.get(asked[0][0], 0))):
                try:
                    digests = [digest for digest, _ in asked]
                    some = await asyncio.to_thread(self.federation.blobs.get_some, digests, SENT_AT_ONCE)
                except BlobError:
                    self.federation.repair()
                    raise
                for (digest, offset), data in zip(asked, some, strict=False):
                    await self._send_blob(digest, offset, data)
                del asked[: len(some)]

    async def _send_blob(self, digest: Digest, offset: int, data: bytes) -> None:
        chunks = self.session.send_blob(digest, data, offset)
        while True:
            async with self._sending:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                await self._transmit(chunk)

    # what the device says

    async def _take(self, data: bytes | str) -> AnyMessage | BlobReceived | None:
        size = len(data)
        self.link.bytes_received += size
        self.federation.metrics.received.inc(size)
        receive: Any = self.session.receive  # a text message is its error to raise
        if size < LARGE_MESSAGE:
            events = receive(data)
        else:  # hashing a chunk would hold up every other device
            async with self._sending:
                events = await asyncio.to_thread(receive, data)
        return events[0] if events else None

    async def _listen(self) -> None:
        while True:
            data = await self.peer.receive()
            if self._over:
                return
            match await self._take(data):
                case Heartbeat(phase=phase, step=step, steps=steps):
                    if self._beats.take(time.monotonic()):
                        raise TooOften("heartbeats")
                    has_moved = (phase, step) != (self.link.phase, self.link.step)
                    self.link.phase, self.link.step, self.link.steps = phase, step, steps
                    if has_moved:
                        await self.federation.progress(self.link.device)
                case Fetch() as fetch:
                    self._fetched.put_nowait(fetch)
                case Update() as update:
                    await self._begin_upload(update)
                case Decline() as no:
                    self.federation.metrics.updates.labels("declined").inc()
                    await self.federation.decline(self.link.device, no.round, no.code, no.why)
                    self.wake.set()
                case BlobReceived(digest, blob) if self._upload is not None:
                    await self._upload.save(digest, blob)
                    await self._end_upload()
                case Done():
                    await self.federation.complete(self.link.device)
                    self._completed = True
                    await self.end(ByeCode.DONE, CloseCode.NORMAL)
                    return

    async def _begin_upload(self, update: Update) -> None:
        if self.federation.has_update(self.link.device, update.round):
            await self._answer(Accepted(round=update.round))
        elif not self.federation.awaits(self.link.device, update.round):
            await self.federation.progress(self.link.device)
            await self._reject(
                update.round, Unacceptable(RejectionCode.LATE, "the round is over or goes on without it")
            )
        else:
            try:
                self._upload = Upload(
                    update, self.membership, self._sent, self.federation, self.link.device, self._holding.give
                )
            except Unacceptable as error:
                await self._reject(update.round, error)
                return
            staged = self.federation.blobs.drop  # a disk does not fill with broken uploads
            await asyncio.to_thread(staged, self.link.device, keep=self._upload.digests)
            self._parts = await asyncio.to_thread(left_behind, self.federation.blobs, self.link.device)
            self._received_before, self._looked_at = self.link.bytes_received, time.monotonic()
            for digest, size in await self._upload.lacking():
                self._asking.put_nowait((self._upload, digest, size))
            await self._end_upload()

    async def _ask(self) -> None:
        """Beside the listening: ask for the blobs of an update, each once there is memory for it."""
        while True:
            upload, digest, size = await self._asking.get()
            if not self._holding.has_room(size):
                upload.eager = True  # what has arrived must not wait for more, which waits for its memory
                await upload.flush()
            await self._holding.take(digest, size)
            upload.eager = False
            if self._upload is upload and digest in self._parts and digest not in self.link.partial:
                part = await asyncio.to_thread(take_up, self.federation.blobs, self.link.device, digest, size)
                if part is not None:
                    self.link.partial[digest] = part
            async with self._sending:
                if self._upload is upload and self.session.state == "reporting":
                    want = Want(digest=digest, offset=self.session.expect(digest, size))
                    await self._transmit(self.session.send(want))
                else:  # it was rejected meanwhile
                    self._holding.give([digest])

    async def _watch_progress(self) -> None:
        """Memory that a device holds and does not use is another's: an upload that stands still ends the connection."""
        while True:
            await asyncio.sleep(STALL_SECONDS / 4)
            received = self.link.bytes_received
            if self._holding.is_empty or received - self._received_before >= LEAST_PROGRESS:
                self._received_before, self._looked_at = received, time.monotonic()
            elif time.monotonic() - self._looked_at >= STALL_SECONDS:
                raise Stalled

    async def _end_upload(self) -> None:
        """Once every blob is there: make the update count, and say so."""
        upload = self._upload
        if upload is None or not upload.complete:
            return
        self._upload, number = None, upload.update.round
        try:
            await upload.settle()
        except Unacceptable as error:
            await self._reject(number, error)
            return
        if await self.federation.accept(self.link.device, number, upload.contributions):
            await self._answer(Accepted(round=number))
        else:
            await self._reject(
                number, Unacceptable(RejectionCode.LATE, f"round {number} closed while the update was on its way")
            )

    async def _reject(self, number: int, error: Unacceptable) -> None:
        if error.code == RejectionCode.LATE:
            self._log.warning("update rejected", round=number, code=error.code, why=error.why)
        else:
            await self.federation.reject(self.link.device, number, error.code, error.why)
        await self._answer(Rejected(round=number, code=error.code, why=error.why[:1024]))

    async def _answer(self, message: Accepted | Rejected) -> None:
        self.federation.metrics.updates.labels(message.type).inc()
        await self._send(message)
        self.wake.set()


def _refs(components: Mapping[ComponentName, Version]) -> tuple[ComponentRef, ...]:
    return tuple(
        ComponentRef(name=WireName(name), version=value.version, digest=value.digest, size=value.size)
        for name, value in sorted(components.items())
    )


def _wire_names(components: Iterable[ComponentName]) -> tuple[WireName, ...]:
    return tuple(WireName(name) for name in components)
