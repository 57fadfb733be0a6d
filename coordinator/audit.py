"""The audit log: who did what to a federation, and when. Rows are only added, in the transaction of the act itself.

It knows names and texts; what an act does is the business of who records it.
"""

import getpass
from dataclasses import dataclass
from datetime import datetime, timezone

from sqlalchemy import Connection, Engine, insert, select

from coordinator.database import reading
from coordinator.schema import audit

SERVICE = "coordinator"
"""The actor of what the service does by itself."""


@dataclass(frozen=True)
class Entry:
    """One administrative act. ``at``: seconds since 1970."""

    at: float
    actor: str
    act: str
    subject: str
    detail: str


def record(
    db: Connection, federation: str, at: float, actor: str, act: str, subject: str = "", detail: str = ""
) -> None:
    """Add a row, in the transaction ``db``. ``actor``: `user_of_the_host`, an operator's name or `SERVICE`."""
    values = {"at": at, "actor": actor[:200], "act": act[:64], "subject": subject[:200], "detail": detail[:2000]}
    db.execute(insert(audit).values(federation=federation, **values))


def entries(engine: Engine, federation: str, last: int | None = None) -> list[Entry]:
    """The acts, oldest first; the last ``last`` of them if given."""
    query = select(audit).where(audit.c.federation == federation).order_by(audit.c.id.desc()).limit(last)
    with reading(engine) as db:
        rows = db.execute(query).all()
    return [Entry(row.at, row.actor, row.act, row.subject, row.detail) for row in reversed(rows)]


def clock(seconds: float) -> str:
    """A time (seconds since 1970) as people read it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def user_of_the_host() -> str:
    """Who runs this command, for ``actor``."""
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):  # a container may run as a number without a name
        return "user"
