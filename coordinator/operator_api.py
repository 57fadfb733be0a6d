"""The pages of the operator plane: what stands, what was done, and the few acts of an operator.

It knows paths, and from where the facts of each come. Who may ask is `http_guard.py`'s matter: whoever comes here for a
page that acts may act, and ``request.state.actor`` says who it is.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response, Security
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as HTTPError

from coordinator import audit
from coordinator.device_server import DevicePlane
from coordinator.federation import Federation
from coordinator.fresh import Fresh
from coordinator.http_guard import UNAVAILABLE
from coordinator.operator_models import (
    AttemptFacts,
    AuditEntry,
    DeviceFacts,
    DeviceName,
    Health,
    Pause,
    Paused,
    Problem,
    Readiness,
    Revoked,
    StatusFacts,
    Stopping,
)
from coordinator.standing import enrolled_facts
from tap_core.errors import UsageError

MOST_ROWS = 10_000
READY_SECONDS = 2.0
"""How long the database may take to answer before the service is not ready."""

Last = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Only so many, the newest.")]
Result = TypeVar("Result")

log = structlog.get_logger("coordinator.http")


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


OF_ALL = (401, 421, 429, 500, 503)
OF_ACTS = (*OF_ALL, 403, 413)


def make_app(federation: Federation, plane: DevicePlane) -> FastAPI:
    """The application behind the guard."""
    app = FastAPI(
        title="tap-coordinator", docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False
    )
    app.add_exception_handler(RequestValidationError, _unprocessable)
    app.add_exception_handler(HTTPError, _refused)
    app.add_exception_handler(SQLAlchemyError, _unavailable)
    app.add_exception_handler(Exception, _failed)
    app.include_router(_open_pages(federation))
    token = [Security(HTTPBearer(auto_error=False, description="A token of tap-coordinator operator add."))]
    app.include_router(_reading_pages(federation, plane), dependencies=token, responses=_problems(*OF_ALL))
    app.include_router(_acting_pages(federation), dependencies=token, responses=_problems(*OF_ACTS))
    return app


def _open_pages(federation: Federation) -> APIRouter:
    pages = APIRouter(responses=_problems(421, 500))
    answers = Fresh(lambda: federation.store.control())

    @pages.get("/healthz")
    async def healthz() -> Health:
        """Alive, and no more than that."""
        return Health()

    @pages.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Whether devices can be served."""
        ready = federation.is_started and not federation.stopping.is_set()
        try:
            await asyncio.wait_for(answers.recent(), READY_SECONDS)
        except (SQLAlchemyError, OSError, UsageError, asyncio.TimeoutError):
            ready = False
        response.status_code = 200 if ready else 503
        return Readiness(ready=ready)

    return pages


def _reading_pages(federation: Federation, plane: DevicePlane) -> APIRouter:
    pages = APIRouter()
    store = federation.store

    @pages.get("/status")
    async def status() -> StatusFacts:
        """The round under way, and what each device does."""
        return StatusFacts.model_validate({**federation.status(), "devices": plane.status()})

    @pages.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(federation.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @pages.get("/devices")
    async def devices() -> list[DeviceFacts]:
        """Everyone who was ever enrolled."""
        rows = await asyncio.to_thread(store.registry.all)
        most = federation.manifest.config.rounds.max_strikes
        return [DeviceFacts(**enrolled_facts(device, time.time(), most)) for device in rows]

    @pages.get("/rounds", responses=_problems(422))
    async def rounds(last: Last = 100) -> list[AttemptFacts]:
        """The attempts at rounds, oldest first."""
        return [AttemptFacts(**vars(attempt)) for attempt in await asyncio.to_thread(store.attempts, last)]

    @pages.get("/audit", responses=_problems(422))
    async def audit_log(last: Last = 100) -> list[AuditEntry]:
        """Who did what, oldest first."""
        rows = await asyncio.to_thread(audit.entries, store.engine, store.federation, last)
        return [AuditEntry(**vars(entry)) for entry in rows]

    return pages


def _acting_pages(federation: Federation) -> APIRouter:
    pages = APIRouter()
    store = federation.store

    async def act(what: Callable[..., Result], *args: Any, request: Request) -> Result:
        return await asyncio.to_thread(what, *args, time.time(), actor=request.state.actor)

    @pages.post("/pause", responses=_problems(400, 422))
    async def pause(request: Request, wish: Pause) -> Paused:
        """Let the open round close and open no other."""
        await act(store.set_paused, wish.why, request=request)
        return Paused(paused=wish.why)

    @pages.post("/resume")
    async def resume(request: Request) -> Paused:
        """Go on after a pause, or after a round that failed too often."""
        await act(store.set_paused, None, request=request)
        return Paused(paused=None)

    @pages.post("/stop", status_code=202)
    async def stop(request: Request) -> Stopping:
        """End the service; a later serve goes on where it stopped."""
        await act(store.request_stop, request=request)
        return Stopping()

    @pages.post("/devices/{name}/revoke", responses=_problems(404, 422))
    async def revoke(request: Request, name: Annotated[DeviceName, Path(description="The device.")]) -> Revoked:
        """Turn a device out: its connection ends, its token is void."""
        try:
            await act(store.registry.revoke, name, request=request)
        except UsageError as error:
            raise HTTPException(404, str(error)) from None
        return Revoked(device=name)

    return pages


# errors: one line each


def _problem(status: int, why: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": " ".join(why.split())[:500]}, status, headers)


async def _unprocessable(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _problem(422, f"{where}: {first['msg']}".encode("ascii", "replace").decode())


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPError)
    return _problem(error.status_code, str(error.detail), error.headers)


async def _unavailable(request: Request, error: Exception) -> Response:
    log.error("the database does not answer", path=request.url.path[:200], error=str(error).strip().split("\n")[0])
    return _problem(503, UNAVAILABLE, {"Retry-After": "1"})


async def _failed(_: Request, __: Exception) -> Response:
    return _problem(500, "it failed; see the log of the coordinator")  # which the guard writes
