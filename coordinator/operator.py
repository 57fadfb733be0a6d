"""The operator plane: /healthz, /status and /metrics over HTTP. It only reads: pause and stop go through the store.

It knows how to show what `Federation.status` and `DevicePlane.status` say. Nobody is asked for a password: it listens
where only operators can reach it.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from coordinator.devices import DevicePlane
from coordinator.federation import Federation


def make_app(federation: Federation, plane: DevicePlane) -> FastAPI:
    """The three pages."""
    app = FastAPI(title="tap-coordinator", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "federation": federation.manifest.config.name, "phase": federation.machine.phase}

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return {**federation.status(), "devices": plane.status()}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(federation.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class OperatorPlane:
    """The HTTP server of one service."""

    def __init__(self, app: FastAPI):
        self._app = app
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        probe = await loop.create_server(
            asyncio.Protocol, host, port
        )  # uvicorn would end the process instead of raising
        sockets = [socket.dup() for socket in probe.sockets]
        probe.close()
        config = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2
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
