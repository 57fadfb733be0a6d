"""Opening the database: SQLite tuned for durability, or PostgreSQL, with the schema brought up to date.

`migrations/` holds the steps (Alembic) from an empty database to the tables of `schema.py`. It knows URLs, drivers and
transactions; it does not know what is in the tables.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy import text as sql
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError

from tap_core.errors import TapError, UsageError
from tap_core.seeds import derive_seed

BUSY_SECONDS = 30
"""How long a transaction waits for another one's write lock (SQLite)."""

LOCK_SECONDS = 5.0
"""How long a coordinator that starts waits for the lock of one that was killed: PostgreSQL may notice that late."""

NEWEST = "0004"
"""The last step in `migrations/`. A database that has it is opened without loading Alembic, which takes a third of a
second; a test holds the two together."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_ONLY_READS = "tap_only_reads"
_LOCK = 0x7461702D65646765  # any fixed number; "tap-edge" in ASCII


CONNECT_SECONDS = 10
"""How long a connection to PostgreSQL may take, unless the URL says otherwise."""

_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted to log in")
"""In the words of PostgreSQL: it is there, and will refuse the next time as well."""


class DatabaseUnavailable(TapError):
    """The database cannot be used at the moment. ``may_come``: whether waiting for it makes sense."""

    def __init__(self, message: str, *, may_come: bool):
        super().__init__(message)
        self.may_come = may_come


def connect(url: str) -> Engine:
    """An engine for a database URL, with the schema up to date.

    SQLite: write-ahead log, every commit fsynced (an acknowledged update must survive a power cut), and transactions
    take the write lock when they begin, so that two processes wait for each other instead of failing; those of
    `reading` take none.
    Raises UsageError if the URL is malformed, its driver is missing, or the database is another or refuses this user;
    DatabaseUnavailable if it cannot be reached, is locked, or its disk is full.
    """
    try:
        parsed = make_url(_with_driver(url))
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise UsageError(f"database {_without_password(url)!r} is not a usable URL: {_first_line(error)}") from None
    try:
        if parsed.get_backend_name() == "postgresql" and "connect_timeout" not in parsed.query:
            parsed = parsed.update_query_dict({"connect_timeout": str(CONNECT_SECONDS)})
        engine = create_engine(parsed, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _tune_sqlite)
            event.listen(engine, "begin", _begin_immediately)
        migrate(engine)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"database {_without_password(url)!r} is not a usable URL: {_first_line(error)}") from None
    except ModuleNotFoundError as error:
        is_known = parsed.get_backend_name() in ("postgresql", "sqlite")
        fix = "pip install 'tap-edge[postgres]'" if is_known else "give a postgresql:// or sqlite:/// URL"
        raise UsageError(f"database {_without_password(url)!r} needs the module {error.name!r}; {fix}") from None
    except DBAPIError as error:
        reason = _first_line(error.orig or error)
        message = f"cannot open database {_without_password(url)!r}: {reason}"
        if isinstance(error, (OperationalError, InterfaceError)) and not _is_settled(parsed, str(error.orig)):
            may_come = parsed.get_backend_name() == "postgresql"
            raise DatabaseUnavailable(message, may_come=may_come) from None
        raise UsageError(message) from None
    return engine


def _is_settled(url: URL, reason: str) -> bool:
    """Whether trying again would meet the same refusal: a wrong user, a directory that is not there."""
    if url.get_backend_name() == "postgresql":
        return any(words in reason for words in _REFUSALS)
    return bool(url.database) and not Path(str(url.database)).parent.is_dir()


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    for pragma in (f"busy_timeout={int(BUSY_SECONDS * 1000)}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    limit = time.monotonic() + BUSY_SECONDS
    while True:  # of processes that open a new file together, SQLite fails all but one at once, whatever the timeout
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > limit:
                raise
        time.sleep(0.01)


def _begin_immediately(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get(_ONLY_READS, False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads: it neither waits for a writer nor keeps one waiting (SQLite)."""
    with engine.connect().execution_options(**{_ONLY_READS: True}) as connection, connection.begin():
        yield connection


def _with_driver(url: str) -> str:
    """PostgreSQL without a driver in the URL means psycopg 3, whatever this version of SQLAlchemy would take."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://...@{tail}" if at else url


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


@contextlib.contextmanager
def serving_lock(engine: Engine, federation: str) -> Iterator[None]:
    """Hold the federation in the database: a coordinator on another host must not serve it too.

    An SQLite file belongs to one host, where the directory's lock (`lock.py`) does this. Raises TapError if it is held.
    """
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        key, limit = {"key": derive_seed("serving", federation)}, time.monotonic() + LOCK_SECONDS
        while not connection.execute(sql("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
            if time.monotonic() > limit:
                raise TapError(
                    f"another coordinator serves federation {federation!r} from this database; stop it first"
                )
            time.sleep(0.1)
        connection.commit()  # the lock belongs to the connection, not to the transaction
        try:
            yield
        finally:
            connection.invalidate()  # closes it, whatever state it is in, and so frees the lock


def migrate(engine: Engine) -> None:
    """Bring the database to the newest schema. Several processes may call it at once: all but one wait."""
    if _revision(engine) == NEWEST:
        return
    from alembic import command
    from alembic.config import Config

    script = Config()
    script.set_main_option("script_location", str(_MIGRATIONS))
    with _exclusive(engine) as connection:
        script.attributes["connection"] = connection
        command.upgrade(script, "head")


def _revision(engine: Engine) -> str | None:
    """The step that the database has come to; None for an empty one."""
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sql("SELECT version_num FROM alembic_version")).scalar_one_or_none()


@contextlib.contextmanager
def _exclusive(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other migration overlaps: SQLite begins with a write lock (see `connect`)."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sql("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        yield connection
