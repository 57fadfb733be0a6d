"""The devices of a federation: who is enrolled, with which token, and what each said of itself.

Each method is one transaction and blocks. It knows rows of the table `devices`; it does not know rounds or connections.
``at`` is in seconds since 1970.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, func, insert, select, update

from coordinator.database import reading
from coordinator.schema import devices
from tap_core.errors import UsageError


@dataclass(frozen=True)
class Device:
    """A row of the registry. ``tasks`` and ``owned`` are empty until the device's first hello."""

    name: str
    token_sha256: str
    enrolled_at: float
    revoked_at: float | None
    joined_at: float | None
    tasks: dict[str, int]
    owned: tuple[str, ...]
    away: bool
    done_at: float | None


class Registry:
    """The devices of one federation."""

    def __init__(self, engine: Engine, federation: str):
        self._engine = engine
        self._federation = federation

    def enroll(self, device: str, token_sha256: str, at: float, *, renew: bool = False) -> None:
        """Admit a device. Raises UsageError if it is enrolled already, unless ``renew`` (its old token is then void) or
        it was revoked."""
        with self._engine.begin() as db:
            known = db.execute(select(devices).where(*self._device(device))).one_or_none()
            if known is None:
                values: dict[str, Any] = {"federation": self._federation, "name": device, "token_sha256": token_sha256}
                values |= {"away": 0, "missed": 0, "strikes": 0}
                db.execute(insert(devices).values(**values, enrolled_at=at))
            elif known.revoked_at is None and not renew:
                raise UsageError(f"device {device!r} is enrolled already; use --renew to replace its token")
            else:
                change = {"token_sha256": token_sha256, "enrolled_at": at, "revoked_at": None}
                db.execute(update(devices).where(*self._device(device)).values(**change))

    def revoke(self, device: str, at: float) -> None:
        """Refuse the device from now on. Raises UsageError if it is not enrolled."""
        with self._engine.begin() as db:
            where = (*self._device(device), devices.c.revoked_at.is_(None))
            if not db.execute(update(devices).where(*where).values(revoked_at=at)).rowcount:
                raise UsageError(f"device {device!r} is not enrolled; see: tap-coordinator devices")

    def all(self) -> list[Device]:
        """Every device ever enrolled, revoked ones included, sorted by name."""
        with reading(self._engine) as db:
            rows = db.execute(select(devices).where(devices.c.federation == self._federation).order_by(devices.c.name))
            return [_device_of(row) for row in rows]

    def valid_tokens(self) -> dict[str, str]:
        """The digest of each device's token; revoked devices have none."""
        return {device.name: device.token_sha256 for device in self.all() if device.revoked_at is None}

    def device_of_token(self, token_sha256: str) -> Device | None:
        """The device with this token; None if there is none or it is revoked."""
        with reading(self._engine) as db:
            where = (devices.c.federation == self._federation, devices.c.token_sha256 == token_sha256)
            row = db.execute(select(devices).where(*where, devices.c.revoked_at.is_(None))).one_or_none()
            return _device_of(row) if row else None

    def register(self, device: str, tasks: Mapping[str, int], owned: Sequence[str], at: float) -> None:
        """Record a hello: the device is a member, owns these components and is no longer away."""
        with self._engine.begin() as db:
            joined = func.coalesce(devices.c.joined_at, at)
            change = {"tasks": dict(tasks), "owned": list(owned), "away": 0, "joined_at": joined}
            db.execute(update(devices).where(*self._device(device)).values(**change))

    def complete(self, device: str, at: float) -> None:
        """Record that the device has ended stage 2."""
        with self._engine.begin() as db:
            db.execute(update(devices).where(*self._device(device)).values(done_at=at))

    def _device(self, name: str) -> tuple[Any, ...]:
        return (devices.c.federation == self._federation, devices.c.name == name)


def _device_of(row: Row[Any]) -> Device:
    return Device(
        name=row.name,
        token_sha256=row.token_sha256,
        enrolled_at=row.enrolled_at,
        revoked_at=row.revoked_at,
        joined_at=row.joined_at,
        tasks=dict(row.tasks or {}),
        owned=tuple(row.owned or ()),
        away=bool(row.away),
        done_at=row.done_at,
    )
