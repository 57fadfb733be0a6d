"""One coordinator process: takes the directory's lock, puts store, federation and planes together, and ends cleanly.

It knows the order of starting and stopping, and nothing of what the parts do.
"""

import asyncio
import errno
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from coordinator import database
from coordinator.blobs import BlobStore
from coordinator.config import ServiceSettings, StatePaths
from coordinator.device_server import DevicePlane
from coordinator.federation import Federation
from coordinator.founding import begin
from coordinator.gate import raise_descriptor_limit, room_for_connections
from coordinator.http_guard import Guard
from coordinator.identity import OPERATOR, new_token, token_digest
from coordinator.lock import serving_lock
from coordinator.memory import keep_freed_memory
from coordinator.metrics import Metrics
from coordinator.operator import OperatorPlane
from coordinator.operator_access import OperatorAccess
from coordinator.operator_api import make_app
from coordinator.operator_registry import OperatorRegistry
from coordinator.privacy import keep_private
from coordinator.store import Store
from coordinator.tls import Certificates
from tap_core.errors import TapError, UsageError
from tap_core.files import replace_private
from tap_core.manifest import load_manifest

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

DATABASE_RETRY_SECONDS = 0.5

log = structlog.get_logger("coordinator.service")


def configure_logs(level: str) -> None:
    """Log to stderr: coloured lines on a terminal, JSON lines otherwise."""
    on_terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def serve(directory: Path, settings: ServiceSettings, *, exit_when_done: bool) -> None:
    """Serve the directory until SIGTERM, SIGINT, `tap-coordinator stop` or, with ``exit_when_done``, the end.

    Raises TapError for what the operator can mend.
    """
    manifest = load_manifest(directory)
    paths = StatePaths(directory)
    paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_private(directory)
    keep_freed_memory()
    with serving_lock(paths.lock):
        engine = await _open_database(paths.database_url(settings.database), settings.wait_for_database)
        store = Store(engine, manifest.config.name)
        blobs = BlobStore(paths.blobs)
        try:
            with database.serving_lock(store.engine, manifest.config.name):
                begin(directory, manifest, store, blobs)
                store.clear_stop()
                federation = Federation(
                    manifest,
                    store,
                    blobs,
                    directory=directory,
                    threads=settings.aggregation_threads,
                    metrics=Metrics(),
                )
                await _serve(federation, settings, paths, exit_when_done)
        except (OSError, SQLAlchemyError) as error:
            why = str(error).strip().split("\n")[0]
            raise TapError(f"cannot store: {why}; nothing is lost, serve again once this is mended") from None
        finally:
            blobs.close()
            store.close()


async def _open_database(url: str, wait: float) -> Engine:
    """Connect, and wait up to ``wait`` seconds for a database server that is not up yet."""
    limit, waits = time.monotonic() + wait, False
    while True:
        try:
            return await asyncio.to_thread(database.connect, url)
        except database.DatabaseUnavailable as error:
            if not error.may_come or time.monotonic() >= limit:
                raise
            if not waits:
                log.warning("waiting for the database", why=str(error), seconds=wait)
            waits = True
        await asyncio.sleep(min(DATABASE_RETRY_SECONDS, max(0.0, limit - time.monotonic())))


def _certificates(settings: ServiceSettings) -> Certificates | None:
    if not settings.tls_cert:
        return None
    client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    return Certificates(Path(settings.tls_cert), Path(settings.tls_key), client_ca)


def connections_of(settings: ServiceSettings) -> tuple[int, int]:
    """How many connections each plane may hold, once as many files as possible may be open.

    Raises UsageError if the settings ask for more than that.
    """
    descriptors = raise_descriptor_limit()
    most, http = room_for_connections(descriptors)
    if settings.max_connections > most:
        raise UsageError(
            f"max_connections is {settings.max_connections}, but {descriptors} open files leave room for {most}; lower "
            "it, or raise the limit of open files (LimitNOFILE under systemd, ulimit -n)"
        )
    return settings.max_connections or most, http


async def _serve(federation: Federation, settings: ServiceSettings, paths: StatePaths, exit_when_done: bool) -> None:
    connections, http_connections = connections_of(settings)
    certificates = _certificates(settings)
    plane = DevicePlane(federation, connections=connections, transfer_memory=settings.transfer_memory * 1024 * 1024)
    local_token = new_token(OPERATOR)  # for `tap-coordinator status`: whoever may read the state directory may ask
    registry = OperatorRegistry(federation.store.engine, federation.store.federation)
    access = OperatorAccess(registry, token_digest(local_token))
    guarded = Guard(make_app(federation, plane), access, settings.http_hosts)
    operators = OperatorPlane(guarded, connections=http_connections)
    watching: asyncio.Future[None] | None = None
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        await federation.start()
        tls = None if certificates is None else certificates.context
        port = await _listen(functools.partial(plane.start, tls=tls), settings.host, settings.port, "--port")
        http_port = await _listen(operators.start, settings.http_host, settings.http_port, "--http-port")
        addresses = {
            "pid": os.getpid(),
            "host": settings.host,
            "port": port,
            "http_host": settings.http_host,
            "http_port": http_port,
        }
        replace_private(paths.addresses, json.dumps({**addresses, "http_token": local_token}).encode(), durable=False)
        log.info("serving", **addresses, tls=certificates is not None)
        if certificates is not None:
            watching = asyncio.ensure_future(certificates.watch())
        events = [stopped, federation.stopping] + ([federation.ended] if exit_when_done else [])
        await _first(events)
        log.info("stopping", round=federation.machine.round, phase=federation.machine.phase)
    finally:
        if watching is not None:
            watching.cancel()
        paths.addresses.unlink(missing_ok=True)
        await plane.stop()
        await operators.stop()
        try:
            await federation.close()
        finally:
            await loop.shutdown_default_executor()  # no write to the store may outlive the locks


async def _listen(start: Callable[[str, int], Awaitable[int]], host: str, port: int, option: str) -> int:
    try:
        return await start(host, port)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            option = option.replace("port", "host")
        raise TapError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with {option}"
        ) from None


async def _first(events: list[asyncio.Event]) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
