"""What is true of every request to the HTTP plane, whatever the page: it names a host that this service answers to, it
shows a token whose role allows the method, its body is small; and every answer says that it must not be kept.

An ASGI application around another one. It knows headers and sizes; it does not know pages.
"""

import ipaddress
import json
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.operator_access import OperatorAccess, Unknown

MOST_BYTES = 64 * 1024
"""Of a request's body."""

OPEN_PAGES = ("/healthz", "/readyz")
"""What anybody may ask."""

UNAVAILABLE = "the database does not answer; try again"

READING = ("GET", "HEAD")

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

log = structlog.get_logger("coordinator.http")


def host_name(header: str) -> str:
    """The host of a Host header, without its port: in lower case, an address in its shortest form; empty if it is none.

    >>> host_name("[0:0:0:0:0:0:0:1]:8711"), host_name("LocalHost:80"), host_name("a:b")
    ('::1', 'localhost', '')
    """
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return ""
        port = port.removeprefix(":")
    else:
        name, _, port = header.partition(":")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return ""
    try:
        return ipaddress.ip_address(name).compressed
    except ValueError:
        return "" if header.startswith("[") else name.lower()


class Guard:
    """The application that uvicorn calls."""

    def __init__(self, app: ASGIApp, access: OperatorAccess, hosts: Iterable[str]):
        """``hosts``: names and addresses that this service answers to, beside those of the host itself."""
        self._app, self._access = app, access
        self._hosts = {host_name(f"[{host}]" if ":" in host else host) for host in (*LOCAL_HOSTS, *hosts)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: in no case with more than one line about an error."""
        if scope["type"] != "http":
            return  # no page speaks WebSocket, and uvicorn then closes the connection
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except Exception as error:  # the one boundary of the HTTP plane: nobody else hears of it
            why = f"{type(error).__name__}: {error}".split("\n")[0]
            log.error("request failed", method=scope["method"], path=scope["path"][:200], error=why)
            if not answer.begun:
                await answer.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "it failed; see the log of the coordinator")

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or host_name(hosts[0]) not in self._hosts:
            why = "this service does not answer to the host name of the request; allow it with --http-allowed-host"
            return await answer.refuse(HTTPStatus.MISDIRECTED_REQUEST, why)
        if scope["path"] not in OPEN_PAGES:
            authorizations = _values(scope, b"authorization")
            authorization = authorizations[0] if len(authorizations) == 1 else None
            try:
                caller = await self._access.caller(authorization, (scope.get("client") or ("?",))[0])
            except SQLAlchemyError as error:
                log.error("the database does not answer", error=str(error).strip().split("\n")[0])
                return await answer.refuse(HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE, [(b"retry-after", b"1")])
            if isinstance(caller, Unknown):
                return await answer.unauthorized(caller)
            if scope["method"] not in READING and caller.role != "write":
                return await answer.refuse(HTTPStatus.FORBIDDEN, "this token may only read; --role write may act")
            scope.setdefault("state", {})["actor"] = caller.actor
        body = await _body(receive)
        if body is None:
            return await answer.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has {MOST_BYTES} bytes at most")
        await self._app(scope, _replayed(body, receive), answer.send)


class _Answer:
    """One response, with the headers that all have."""

    def __init__(self, send: Send):
        self._send = send
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            fixed = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", []), *fixed]}
        await self._send(message)

    async def refuse(self, status: HTTPStatus, why: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        body = json.dumps({"detail": why}).encode()
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
        await self.send({"type": "http.response.start", "status": int(status), "headers": about})
        await self.send({"type": "http.response.body", "body": body})

    async def unauthorized(self, caller: Unknown) -> None:
        if caller.retry_after:
            wait = [(b"retry-after", str(caller.retry_after).encode())]
            return await self.refuse(HTTPStatus.TOO_MANY_REQUESTS, caller.why, wait)
        await self.refuse(HTTPStatus.UNAUTHORIZED, caller.why, [(b"www-authenticate", b"Bearer")])


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large. Nothing beyond the limit is kept."""
    body = b""
    while True:
        message = await receive()
        more: bytes = message.get("body", b"")
        body += more
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body", False):  # also of a client that has gone
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay
