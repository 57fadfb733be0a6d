"""How a device replaces its own secret: a one-time code by its first token, a token by the next one.

The device makes the token and sends its sha256 alone, so no answer carries a secret. Asking again with the same token
is answered the same again: an answer that was lost costs nothing. Each function is one transaction and blocks. It knows
rows of the table `devices`; it does not know how requests travel. ``at`` is in seconds since 1970.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update
from sqlalchemy.exc import IntegrityError

from coordinator import audit
from coordinator.database import reading
from coordinator.identity import same_digest
from coordinator.schema import devices


class Void(Exception):
    """The code or token that was shown is not valid, or not any more."""


class Conflict(Exception):
    """It is valid, and what is asked does not fit. The text is one line that says what to do."""


@dataclass(frozen=True)
class Issued:
    """The token with the digest that was sent is the device's. ``expires_at``: None for never."""

    device: str
    expires_at: float | None


def known(engine: Engine, federation: str) -> dict[str, str]:
    """The device of every digest of a token or code that was not revoked; whether it has expired is not looked at."""
    columns = (devices.c.name, devices.c.token_sha256, devices.c.code_sha256)
    where = (devices.c.federation == federation, devices.c.revoked_at.is_(None))
    with reading(engine) as db:
        rows = db.execute(select(*columns).where(*where)).all()
    return {digest: row.name for row in rows for digest in (row.token_sha256, row.code_sha256) if digest is not None}


def exchange(
    engine: Engine, federation: str, code_sha256: str, token_sha256: str, at: float, *, device: str | None = None
) -> Issued:
    """Exchange a code for a token. ``device``: who asks, if it said so. Raises Void and Conflict."""
    try:
        with engine.begin() as db:
            row = _row(db, federation, devices.c.code_sha256 == code_sha256)
            if device is not None and device != row.name:
                raise Conflict(f"the code is for device {row.name!r} and this one is {device!r}; correct device_id")
            if row.code_used_at is None:
                if row.code_expires_at <= at:
                    raise Void
                return _issue(db, row, token_sha256, at, "exchange", code_used_at=at)
            if not same_digest(row.token_sha256, token_sha256):
                raise Conflict("the code was used already; unless this device did it, have the operator revoke it")
            return _still_valid(row, at)
    except IntegrityError:
        raise _taken() from None


def rotate(engine: Engine, federation: str, current_sha256: str, token_sha256: str, at: float) -> Issued:
    """Replace a token by the next one, which will be valid for as long as this one was. Raises Void and Conflict."""
    try:
        with engine.begin() as db:
            row = _row(db, federation, devices.c.token_sha256 == current_sha256)
            issued = _still_valid(row, at)
            if same_digest(current_sha256, token_sha256):
                return issued
            return _issue(db, row, token_sha256, at, "rotate")
    except IntegrityError:
        raise _taken() from None


def _row(db: Connection, federation: str, match: Any) -> Row[Any]:
    query = select(devices).where(devices.c.federation == federation, devices.c.revoked_at.is_(None), match)
    row = db.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise Void
    return row


def _still_valid(row: Row[Any], at: float) -> Issued:
    if row.token_expires_at is not None and row.token_expires_at <= at:
        raise Void
    return Issued(row.name, row.token_expires_at)


def _issue(db: Connection, row: Row[Any], token_sha256: str, at: float, act: str, **used: float) -> Issued:
    expires_at = None if row.token_expires_at is None else at + (row.token_expires_at - row.enrolled_at)
    change = {"token_sha256": token_sha256, "enrolled_at": at, "token_expires_at": expires_at, **used}
    where = (devices.c.federation == row.federation, devices.c.name == row.name)
    db.execute(update(devices).where(*where).values(**change))
    until = "" if expires_at is None else f"expires {audit.clock(expires_at)}"
    audit.record(db, row.federation, at, f"device {row.name}", act, row.name, until)
    return Issued(row.name, expires_at)


def _taken() -> Conflict:
    return Conflict("another device has this very token; remove the file of the new token and try again")
