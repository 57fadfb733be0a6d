"""The operator plane's server: uvicorn on sockets of its own.

It knows sockets; pages are `operator_api.py`'s matter.
"""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from coordinator.gate import ACCEPTED_AT_ONCE, HTTP_CONNECTIONS, Caps, Door, Gate

REQUEST_SECONDS = 60.0
"""How long a connection may stay open: whoever looks at a page connects again for the next one."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class OperatorPlane:
    """The HTTP server of one service."""

    def __init__(self, app: ASGIApp, *, connections: int = HTTP_CONNECTIONS):
        """``connections``: how many may be open at a time."""
        self._app = app
        self._door = Door(Gate(Caps(connections, connections, max(1, connections // 2)), REQUEST_SECONDS))
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError if the address cannot be had."""
        sockets = self._door.listen(host, port)
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=2,
            backlog=ACCEPTED_AT_ONCE,
        )
        self._server = _Server(config)
        self._task = asyncio.ensure_future(self._server.serve(sockets=sockets))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        return int(sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
        self._door.close()
