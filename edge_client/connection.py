"""One WebSocket to the coordinator: bytes of the session in and out, counted, and the reasons for which it ends.

It knows sockets, the token and how long to wait before trying again. What the messages mean is the session's and the
agent's business; it never sees a tensor.

Two ways to end: `Disconnected` (try again later) and `TapError` (the user must change something first).
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, NegotiationError
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from edge_client.outages import Disconnected
from edge_client.tls import CERTIFICATE_HINT, distrust, refusal_of_tls
from protocol.errors import RemoteProtocolError
from protocol.messages import CHUNK, MAX_MESSAGE, SUBPROTOCOL, Message
from protocol.names import Digest
from protocol.session import Session, SessionEvent
from protocol.transfer import Incoming
from tap_core.errors import TapError, UsageError

OPEN_TIMEOUT = 20.0
"""Seconds for the connection and the handshake."""

PING_SECONDS = 20.0
"""Between the WebSocket's own pings, which find a dead network while nothing is sent."""

SILENCE_SECONDS = 180.0
"""After so long without an answer the coordinator is taken for gone. Over a slow link the answer to a ping waits behind
what the coordinator is sending."""

UPLOAD_CHUNK = CHUNK // 4
"""Bytes of a chunk sent: pings wait behind it, and an upload that was cut goes on at the last whole one, so smaller is
better over a slow link. Larger ones make a round without training about a tenth faster."""


@dataclass
class Traffic:
    """Bytes of protocol messages over all connections of this device; WebSocket framing is not counted."""

    sent: int = 0
    received: int = 0


class TokenRefused(UsageError):
    """The coordinator does not take the token that was shown: unknown, revoked, expired or replaced by another."""


class Connection:
    """An open WebSocket with its session. Blobs go out beside everything else: a long upload must not keep the caller
    from receiving, nor the pings of the coordinator from being answered."""

    def __init__(self, socket: ClientConnection, session: Session, traffic: Traffic):
        self._socket, self.session, self._traffic = socket, session, traffic
        self._sending = asyncio.Lock()  # what the session encodes goes out in that order
        self._blobs: deque[Iterator[bytes]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        """Send one message. Raises Disconnected, also if the coordinator has said bye and nobody has heard it yet."""
        async with self._sending:
            if self.session.state == "closed":
                raise Disconnected("the connection is over", reached=True)
            await self._send(self.session.send(message))

    def send_blob(self, digest: Digest, data: bytes, offset: int) -> None:
        """Begin to send a blob from ``offset`` on, after those that wait already. `receive` tells if that fails."""
        self._blobs.append(self.session.send_blob(digest, data, offset))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.ensure_future(self._send_blobs())

    async def _send_blobs(self) -> None:
        with contextlib.suppress(Disconnected):
            while self._blobs:
                async with self._sending:
                    chunk = next(self._blobs[0], None)
                    if chunk is not None:
                        await self._send(chunk)
                        continue
                self._blobs.popleft()

    async def close(self) -> None:
        """Close the connection; what waits to be sent is dropped."""
        self.session.connection_lost()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        await self._socket.close()

    async def receive(self) -> list[SessionEvent]:
        """The events of the next message; none for a chunk in the middle of a blob. Raises Disconnected.

        A message that breaks the protocol closes the connection with the code that the session asks for.
        """
        try:
            data = await self._socket.recv()
        except ConnectionClosed as error:
            raise self._closed(error) from None
        self._traffic.received += len(data)
        try:
            return self.session.receive(data)  # type: ignore[arg-type]  # a text message is its error to raise
        except RemoteProtocolError as error:
            await self._socket.close(error.close_code, "protocol error")
            raise Disconnected(f"the coordinator broke the protocol: {error}", reached=True) from None

    async def _send(self, data: bytes) -> None:
        try:
            await self._socket.send(data)
        except ConnectionClosed as error:
            raise self._closed(error) from None
        self._traffic.sent += len(data)

    def _closed(self, error: ConnectionClosed) -> Disconnected:
        close = error.rcvd or error.sent
        reason = "connection lost" if close is None else f"connection closed ({close.code} {close.reason})".rstrip()
        return Disconnected(reason, reached=True, farewell=close is not None and close.code == CloseCode.NORMAL_CLOSURE)


@asynccontextmanager
async def open_connection(
    address: str,
    token: str,
    *,
    token_file: Path,
    partial: dict[Digest, Incoming],
    traffic: Traffic,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Connection]:
    """Connect, with the token in the handshake. ``partial``: transfers cut off earlier, continued by the session.
    ``tls``: see `tls_context`; None trusts whom the system trusts.

    Raises Disconnected if the coordinator cannot be reached or is not ready, and TapError, with the fix in the message,
    if trying again would not help: a refused token, another protocol, a certificate that cannot be trusted.
    """
    socket = await _connect(address, token, token_file, tls)
    connection = Connection(socket, Session("device", partial=partial, chunk_size=UPLOAD_CHUNK), traffic)
    try:
        yield connection
    finally:
        await connection.close()


async def _connect(address: str, token: str, token_file: Path, tls: ssl.SSLContext | None) -> ClientConnection:
    options: Any = {} if tls is None else {"ssl": tls}
    lost: list[Exception] = []
    try:
        socket = await connect(
            address,
            additional_headers={"Authorization": f"Bearer {token}"},
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_MESSAGE,
            open_timeout=OPEN_TIMEOUT,
            create_connection=_noting(lost),
            **options,
            ping_interval=PING_SECONDS,
            ping_timeout=SILENCE_SECONDS,
        )
    except InvalidURI as error:
        raise UsageError(f"coordinator {address!r} is no usable address ({error}); give ws://HOST:PORT") from None
    except InvalidStatus as error:
        raise _refusal(error.response.status_code, address, token_file) from None
    except NegotiationError:
        raise _other_protocol(address) from None
    except ssl.SSLCertVerificationError as error:
        raise TapError(distrust(address, error)) from None
    except (OSError, InvalidHandshake, EOFError, asyncio.TimeoutError) as error:
        if refused := refusal_of_tls(address, [error, *lost]):
            raise TapError(refused) from None
        reason = _reason(error)
        if address.startswith("wss:") and isinstance(error.__cause__, EOFError):  # not every server says why
            reason = f"it hung up before it answered; {CERTIFICATE_HINT}"
        raise Disconnected(reason, reached=False) from None
    if socket.subprotocol != SUBPROTOCOL:
        await socket.close()
        raise _other_protocol(address)
    return socket


def _noting(lost: list[Exception]) -> type[ClientConnection]:
    """A connection that adds to ``lost`` what ended it: a refusal by the other side of TLS comes after the handshake
    and would else be told as an answer that did not come."""

    class Noting(ClientConnection):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.extend([] if exc is None else [exc])
            super().connection_lost(exc)

    return Noting


def _refusal(status: int, address: str, token_file: Path) -> Exception:
    if status == 401:
        return TokenRefused(
            f"{address} refused this device's token (HTTP 401); have the operator run 'tap-coordinator enroll' "
            f"with --renew for this device_id and put the new token into {token_file}"
        )
    if status >= 500 or status in (408, 425, 429):
        return Disconnected(f"HTTP {status}", reached=False)
    return TapError(
        f"{address} is no device port of a coordinator (HTTP {status}); correct 'coordinator' (tap-coordinator serve "
        "prints its address)"
    )


def _other_protocol(address: str) -> TapError:
    return TapError(f"{address} does not speak {SUBPROTOCOL}; use the same version of tap-edge as the coordinator")


def _reason(error: BaseException) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return f"no answer within {OPEN_TIMEOUT:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__
