"""The device plane: the WebSocket server that devices connect to. The only module with sockets for devices.

It checks the token before the upgrade and hands each connection to a `Conversation`; it does not know what is said.
"""

import asyncio
import time
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from coordinator.conversation import Conversation
from coordinator.enrolment import EnrolmentDesk
from coordinator.federation import Federation
from coordinator.identity import bearer_token, same_digest, token_digest
from coordinator.link import Gone, Link
from coordinator.registry import Device
from coordinator.standing import device_facts
from protocol.messages import MAX_MESSAGE, SUBPROTOCOL

PING_SECONDS = 20.0
SILENCE_SECONDS = 60.0
"""A device that has not answered a ping for so long is taken for gone."""

CLOSE_SECONDS = 3.0
"""How long a device may take to answer the close of its connection before it is cut."""

WRITE_BUFFER = 1024 * 1024
"""Bytes that may wait in the socket of one device before sending to it pauses."""

log = structlog.get_logger("coordinator.devices")


class WebSocketPeer:
    """A `link.Peer` over a WebSocket."""

    def __init__(self, connection: ServerConnection):
        self._connection = connection
        remote = connection.remote_address
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

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code, reason)

    def abort(self) -> None:
        self._connection.transport.abort()


class DevicePlane:
    """The server that devices connect to."""

    def __init__(self, federation: Federation):
        self.federation = federation
        self.links: dict[str, Link] = {}
        self._desk = EnrolmentDesk(federation.store)
        self._server: Server | None = None
        self._background: set[asyncio.Task[None]] = set()
        federation.subscribe(self._wake, self._expel)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError if the address cannot be had."""
        self._server = await serve(
            self._converse,
            host,
            port,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_MESSAGE,
            max_queue=4,
            write_limit=WRITE_BUFFER,
            ping_interval=PING_SECONDS,
            ping_timeout=SILENCE_SECONDS,
            close_timeout=CLOSE_SECONDS,
            process_request=self._authenticate,
            server_header=None,
        )
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def stop(self) -> None:
        """Say bye to every device and close."""
        ends = [link.conversation.end("shutdown", 1001) for link in self.links.values() if link.conversation]
        await asyncio.gather(*ends, *self._background)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def status(self) -> dict[str, dict[str, Any]]:
        """Every enrolled device: whether it is connected, what it does, and the bytes moved since the service began."""
        found = {}
        for device in sorted(self.federation.enrolled | set(self.links)):
            link = self.links.get(device) or Link(device)
            found[device] = device_facts(
                connected=link.conversation is not None,
                phase=link.phase,
                step=link.step,
                steps=link.steps,
                sent=link.bytes_sent,
                received=link.bytes_received,
            )
        return found

    async def _authenticate(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse with 401, before the upgrade, whoever shows no valid token."""
        if (response := await self._desk.respond(connection, request)) is not None:
            return response
        headers = request.headers.get_all("Authorization")
        token = bearer_token(headers[0]) if len(headers) == 1 else None
        digest = token_digest(token) if token else ""
        device = await self._device_of(digest) if token else None
        if device is not None and same_digest(device.token_sha256, digest):
            connection.tap_device, connection.tap_token = device.name, digest  # type: ignore[attr-defined]
            return None
        why = "the token is not valid, was revoked or has expired" if token else "the request carries no token"
        self.federation.metrics.refused.labels("unauthorized").inc()
        log.warning("unauthorized", address=WebSocketPeer(connection).address, why=why)
        fix = "ask the operator for a token: tap-coordinator enroll DEVICE"
        response = connection.respond(HTTPStatus.UNAUTHORIZED, f"{why}; {fix}\n")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    async def _device_of(self, digest: str) -> Device | None:
        return await asyncio.to_thread(self.federation.store.registry.device_of_token, digest, time.time())

    async def _converse(self, connection: ServerConnection) -> None:
        device: str = connection.tap_device  # type: ignore[attr-defined]
        token: str = connection.tap_token  # type: ignore[attr-defined]
        link = self.links.setdefault(device, Link(device))
        await Conversation(self.federation, link, WebSocketPeer(connection), token, self._run).run()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the work beside everything else; `stop` waits for it."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _wake(self) -> None:
        for link in self.links.values():
            if link.conversation is not None:
                link.conversation.wake.set()

    def _expel(self, device: str, valid: str | None) -> None:
        link = self.links.get(device)
        if link is not None and link.conversation is not None and link.conversation.token != valid:
            self._run(link.conversation.end("revoked", 1008))
