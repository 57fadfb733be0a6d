"""The device plane: the WebSocket server that devices connect to. The only module with sockets for devices.

`Admission` says who is let in before the upgrade, the `Door` how many there may be; each connection is handed to a
`DeviceSession`. It does not know what is said.
"""

import asyncio
import ssl
import time
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event
from websockets.typing import Subprotocol

from coordinator.admission import Admission, Admitted, Refused
from coordinator.device_session import TROUBLE, DeviceSession
from coordinator.enrolment import EnrolmentDesk
from coordinator.federation import Federation
from coordinator.gate import ACCEPTED_AT_ONCE, HANDSHAKE_SECONDS, Door, Gate, caps_within
from coordinator.limits import Bucket
from coordinator.link import Gone, Link
from coordinator.standing import device_facts
from coordinator.transfers import Budget
from protocol.codes import ByeCode, CloseCode
from protocol.messages import MAX_MESSAGE, SUBPROTOCOL
from tap_core.names import DeviceName

MOST_CONNECTIONS = 1024
"""Connections to a device plane that was not given a number."""

TRANSFER_MEMORY = 256 * 1024 * 1024
"""Bytes in memory of all transfers of a device plane that was not given a number."""

WAITING_PER_TOKEN = 4
"""Connections of one token that may be open without a welcome; one more, and the oldest of them is cut."""

FIRST_MESSAGE = 64 * 1024
"""Most bytes of a message until the welcome."""

MESSAGES_AHEAD = 2
"""Messages of one connection that are read while the one before them is dealt with."""

PING_SECONDS = 20.0
SILENCE_SECONDS = 60.0
"""A device that has not answered a ping for so long is taken for gone."""

CLOSE_SECONDS = 3.0
"""How long a device may take to answer the close of its connection before it is cut."""

WRITE_BUFFER = 1024 * 1024
"""Bytes that may wait in the socket of one device before sending to it pauses."""

CONTROLS_AT_ONCE, CONTROLS_A_SECOND = 60, 1.0
"""Pings and pongs that a connection may send: each ping is answered, whether or not the answers are read."""

FRAGMENTS = 1024
"""Pieces that a message may come in; devices send each in one."""

log = structlog.get_logger("coordinator.device_server")


class Bounded(ServerConnection):
    """A connection that is cut when it sends more than a device has reason to, below what the protocol sees."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._controls = Bucket(CONTROLS_AT_ONCE, CONTROLS_A_SECOND, time.monotonic())
        self._fragments = 0

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and not self.transport.is_closing():
            if event.opcode in (Opcode.PING, Opcode.PONG):
                if self._controls.take(time.monotonic()):
                    self._cut("control frames")
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._fragments = 0 if event.fin else self._fragments + 1
                if self._fragments > FRAGMENTS:
                    self._cut("fragments of one message")
        super().process_event(event)

    def _cut(self, what: str) -> None:
        admitted: Admitted | None = getattr(self, "tap_admitted", None)
        device = None if admitted is None else admitted.device
        log.warning("too often", what=what, device=device, address=WebSocketPeer(self).address)
        self.transport.abort()


class WebSocketPeer:
    """A `link.Peer` over a WebSocket."""

    def __init__(self, connection: ServerConnection):
        self._connection = connection
        self.is_welcome = False
        remote = connection.remote_address
        self.host = str(remote[0]) if remote else "?"
        self.address = f"{remote[0]}:{remote[1]}" if remote else "?"

    async def receive(self) -> bytes | str:
        try:
            return await self._connection.recv()
        except ConnectionClosed:
            raise Gone from None

    async def send(self, data: bytes) -> None:
        try:
            await self._connection.send(data)
        except ConnectionClosed:
            raise Gone from None

    def welcome(self) -> None:
        self.is_welcome = True
        self._connection.protocol.max_message_size = MAX_MESSAGE

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code, reason)

    def abort(self) -> None:
        self._connection.transport.abort()


class DevicePlane:
    """The server that devices connect to."""

    def __init__(
        self, federation: Federation, *, connections: int = MOST_CONNECTIONS, transfer_memory: int = TRANSFER_MEMORY
    ):
        """``connections``: how many may be open at a time, those without a token included. ``transfer_memory``: bytes
        in memory of all transfers together."""
        self._budget = Budget(transfer_memory)
        self.federation = federation
        self.links: dict[DeviceName, Link] = {}
        self._desk = EnrolmentDesk(federation.store)
        self.admission = Admission(federation.tokens)
        self._turned_out = federation.metrics.refused.labels("crowded").inc
        self._door = Door(Gate(caps_within(connections), HANDSHAKE_SECONDS), self._turned_out)
        self._waiting: dict[str, list[WebSocketPeer]] = {}  # by token: connections without a welcome, the oldest first
        self._servers: list[Server] = []
        self._background: set[asyncio.Task[None]] = set()
        federation.subscribe(self._wake, self._expel)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port. Raises OSError if the address cannot be had."""
        listeners = self._door.listen(host, port)
        for listener in listeners:
            server = await serve(
                self._converse,
                sock=listener,
                ssl=tls,
                backlog=ACCEPTED_AT_ONCE,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=FIRST_MESSAGE,
                max_queue=MESSAGES_AHEAD,
                write_limit=WRITE_BUFFER,
                open_timeout=HANDSHAKE_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=SILENCE_SECONDS,
                close_timeout=CLOSE_SECONDS,
                process_request=self._authenticate,
                server_header=None,
                create_connection=Bounded,
            )
            self._servers.append(server)
        return int(listeners[0].getsockname()[1])

    async def stop(self) -> None:
        """Say bye to every device and close."""
        ends = [
            link.session.end(ByeCode.SHUTDOWN, CloseCode.GOING_AWAY) for link in self.links.values() if link.session
        ]
        await asyncio.gather(*ends, *self._background, return_exceptions=True)
        for server in self._servers:
            server.close()
        for server in self._servers:
            await server.wait_closed()
        self._door.close()

    def status(self) -> dict[DeviceName, dict[str, Any]]:
        """Every enrolled device: whether it is connected, what it does, and the bytes moved since the service began."""
        found = {}
        for device in sorted(self.federation.enrolled | set(self.links)):
            link = self.links.get(device) or Link(device)
            found[device] = device_facts(
                connected=link.session is not None,
                phase=link.phase,
                step=link.step,
                steps=link.steps,
                sent=link.bytes_sent,
                received=link.bytes_received,
            )
        return found

    async def _authenticate(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse, before the upgrade, whoever shows no valid token (401) or comes too often (429)."""
        address = WebSocketPeer(connection).host
        try:
            if (response := await self._desk.respond(connection, request)) is not None:
                return response
            answer = await self.admission.check(request.headers.get_all("Authorization"), address)
        except Exception as error:  # the one boundary of a handshake: nobody else hears of it
            log.error("handshake failed", address=address, error=f"{type(error).__name__}: {error}")
            answer = Refused(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "tokens cannot be looked up; try again", 1)
        if isinstance(answer, Admitted):
            connection.tap_admitted = answer  # type: ignore[attr-defined]
            self._door.admit(connection.transport.get_extra_info("socket"))
            return None
        self.federation.metrics.refused.labels(answer.code).inc()
        response = connection.respond(answer.status, f"{answer.text}\n")
        if answer.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if answer.retry_after:
            response.headers["Retry-After"] = str(answer.retry_after)
        return response

    async def _converse(self, connection: ServerConnection) -> None:
        peer = WebSocketPeer(connection)
        try:
            await self._talk(peer, connection.tap_admitted)  # type: ignore[attr-defined]
        except Exception as error:  # the outermost boundary of a connection: the others go on
            log.error("connection dropped", address=peer.address, error=f"{type(error).__name__}: {error}")
            await peer.close(CloseCode.TROUBLE, TROUBLE)

    async def _talk(self, peer: WebSocketPeer, admitted: Admitted) -> None:
        link = self.links.setdefault(admitted.device, Link(admitted.device))
        waiting = self._waiting.setdefault(admitted.token, [])
        waiting[:] = [other for other in waiting if not other.is_welcome]
        waiting.append(peer)
        if len(waiting) > WAITING_PER_TOKEN:
            waiting.pop(0).abort()
        try:
            await DeviceSession(self.federation, link, peer, admitted.token, self._run, self._budget).run()
        finally:
            if peer in waiting:
                waiting.remove(peer)
            if not waiting and self._waiting.get(admitted.token) is waiting:
                del self._waiting[admitted.token]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the work beside everything else; `stop` waits for it."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection could not be ended", error=f"{type(error).__name__}: {error}")

    def _wake(self) -> None:
        for link in self.links.values():
            if link.session is not None:
                link.session.wake.set()

    def _expel(self, device: DeviceName, valid: str | None) -> None:
        link = self.links.get(device)
        if link is not None and link.session is not None and link.session.token != valid:
            self._run(link.session.end(ByeCode.REVOKED, CloseCode.POLICY))
