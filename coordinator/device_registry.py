"""The devices of a federation: who is enrolled, with which token, and what each said of itself.

Each method is one transaction and blocks. It knows rows of the table `devices`; it does not know rounds or connections.
``at`` is in seconds since 1970.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, func, insert, null, select, update

from coordinator import audit
from coordinator.database import reading
from coordinator.schema import devices
from tap_core.errors import UsageError
from tap_core.names import ComponentName, DeviceName, TaskName

MAX_EXAMPLES = 1_000_000
"""Training examples of one task that a device may claim unless `enroll --max-examples` says otherwise."""


@dataclass(frozen=True)
class Enrolment:
    """What a valid token stands for: its digest, and the bounds of what its device may say in a hello."""

    token_sha256: str
    allowed_tasks: tuple[TaskName, ...] | None = None
    """None: every task of the federation."""
    max_examples: int = MAX_EXAMPLES
    """Of one task."""


@dataclass(frozen=True)
class Device:
    """A row of the registry. ``tasks`` and ``owned`` are empty until the device's first hello."""

    name: DeviceName
    token_sha256: str
    enrolled_at: float
    revoked_at: float | None
    joined_at: float | None
    tasks: dict[TaskName, int]
    owned: tuple[ComponentName, ...]
    away: bool
    done_at: float | None
    allowed_tasks: tuple[TaskName, ...] | None = None
    max_examples: int = MAX_EXAMPLES
    missed: int = 0
    strikes: int = 0
    token_expires_at: float | None = None
    code_expires_at: float | None = None
    """While it has a code and no token yet."""

    def is_valid(self, at: float) -> bool:
        """Whether its token opens a connection: it has one, which is neither revoked nor expired."""
        expired = self.token_expires_at is not None and self.token_expires_at <= at
        return self.revoked_at is None and self.code_expires_at is None and not expired

    def is_admitted(self, at: float) -> bool:
        """Whether it may take part: with a valid token, or with a code that it may still exchange for one."""
        has_code = self.revoked_at is None and self.code_expires_at is not None and self.code_expires_at > at
        return has_code or self.is_valid(at)


class Registry:
    """The devices of one federation."""

    def __init__(self, engine: Engine, federation: str):
        self._engine = engine
        self._federation = federation

    def enroll(
        self,
        device: DeviceName,
        token_sha256: str,
        at: float,
        *,
        renew: bool = False,
        allowed_tasks: Sequence[TaskName] | None = None,
        max_examples: int | None = None,
        expires_at: float | None = None,
        code_expires_at: float | None = None,
        actor: str = audit.SERVICE,
    ) -> None:
        """Admit a device, with nothing held against it. Raises UsageError if it is enrolled already, unless ``renew``
        (its old token is then void) or it was revoked; also if it never was and ``renew`` is given, for a misspelt name
        must not admit another device.

        ``allowed_tasks`` and ``max_examples`` are the bounds of its `Enrolment`. None leaves those of a device that is
        renewed as they are, and gives any other the default. ``expires_at``: when its token becomes void. With
        ``code_expires_at`` the digest is that of a one-time code, valid till then, which the device exchanges for a
        token (`credentials.py`).
        """
        secret: dict[str, Any] = {"token_sha256": token_sha256, "token_expires_at": expires_at, "enrolled_at": at}
        secret |= {"code_sha256": None, "code_expires_at": code_expires_at, "code_used_at": None}
        if code_expires_at is not None:
            secret |= {"token_sha256": f"-{token_sha256[1:]}", "code_sha256": token_sha256}  # "-": no token's digest
        bounds: dict[str, Any] = {"allowed_tasks": null() if allowed_tasks is None else sorted(set(allowed_tasks))}
        bounds["max_examples"] = MAX_EXAMPLES if max_examples is None else max_examples
        with self._engine.begin() as db:
            known = db.execute(select(devices).where(*self._device(device))).one_or_none()
            if known is None and renew:
                hint = "leave out --renew to admit it, or see: tap-coordinator devices"
                raise UsageError(f"device {device!r} was never enrolled; {hint}")
            if known is None:
                values: dict[str, Any] = {"federation": self._federation, "name": device, **secret, **bounds}
                db.execute(insert(devices).values(**values, away=0, missed=0, strikes=0))
            elif known.revoked_at is None and not renew:
                raise UsageError(f"device {device!r} is enrolled already; use --renew to replace its token")
            else:
                if known.revoked_at is None:
                    given = {"allowed_tasks": allowed_tasks, "max_examples": max_examples}
                    bounds = {name: bounds[name] for name, value in given.items() if value is not None}
                change = {**secret, "revoked_at": None, **bounds, "missed": 0, "strikes": 0}
                db.execute(update(devices).where(*self._device(device)).values(**change))
            act = "enroll" if known is None or known.revoked_at is not None else "renew"
            detail = "with a code" if code_expires_at is not None else "with a token"
            detail += "" if expires_at is None else f" that expires {audit.clock(expires_at)}"
            audit.record(db, self._federation, at, actor, act, device, detail)

    def revoke(self, device: DeviceName, at: float, *, actor: str = audit.SERVICE) -> None:
        """Refuse the device from now on. Raises UsageError if it is not enrolled."""
        with self._engine.begin() as db:
            where = (*self._device(device), devices.c.revoked_at.is_(None))
            if not db.execute(update(devices).where(*where).values(revoked_at=at)).rowcount:
                known = db.execute(select(devices.c.name).where(*self._device(device))).one_or_none()
                state = "not enrolled" if known is None else "revoked already"
                raise UsageError(f"device {device!r} is {state}; see: tap-coordinator devices")
            audit.record(db, self._federation, at, actor, "revoke", device)

    def all(self) -> list[Device]:
        """Every device ever enrolled, revoked ones included, sorted by name."""
        with reading(self._engine) as db:
            rows = db.execute(select(devices).where(devices.c.federation == self._federation).order_by(devices.c.name))
            return [_device_of(row) for row in rows]

    def enrolments(self, at: float) -> dict[DeviceName, Enrolment]:
        """What each device's token stands for; devices whose token is revoked or expired have none."""
        return {
            device.name: Enrolment(device.token_sha256, device.allowed_tasks, device.max_examples)
            for device in self.all()
            if device.is_valid(at)
        }

    def register(
        self, device: DeviceName, tasks: Mapping[TaskName, int], owned: Sequence[ComponentName], at: float
    ) -> None:
        """Record a hello: the device is a member, owns these components and is no longer away.

        One that says nothing new only reads: devices that connect again and again must not keep a writer waiting.
        """
        if self._says_nothing_new(device, tasks, owned):
            return
        with self._engine.begin() as db:
            joined = func.coalesce(devices.c.joined_at, at)
            change = {"tasks": dict(tasks), "owned": list(owned), "away": 0, "joined_at": joined}
            db.execute(update(devices).where(*self._device(device)).values(**change))

    def _says_nothing_new(
        self, device: DeviceName, tasks: Mapping[TaskName, int], owned: Sequence[ComponentName]
    ) -> bool:
        with reading(self._engine) as db:
            row = db.execute(select(devices).where(*self._device(device))).one_or_none()
        known = None if row is None or row.joined_at is None else (row.tasks, row.owned, row.away)
        return known == (dict(tasks), list(owned), 0)

    def returned(self, device: DeviceName) -> None:
        """Record that the device, which was away, is at work again."""
        with self._engine.begin() as db:
            db.execute(update(devices).where(*self._device(device)).values(away=0))

    def is_blamed(self, device: DeviceName) -> bool:
        """Whether strikes or missed deadlines are held against the device."""
        with reading(self._engine) as db:
            query = select(devices.c.strikes, devices.c.missed).where(*self._device(device))
            return any(db.execute(query).one())

    def complete(self, device: DeviceName, at: float) -> None:
        """Record that the device has ended stage 2."""
        with self._engine.begin() as db:
            db.execute(update(devices).where(*self._device(device)).values(done_at=at))

    def _device(self, name: DeviceName) -> tuple[Any, ...]:
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
        allowed_tasks=None if row.allowed_tasks is None else tuple(row.allowed_tasks),
        max_examples=MAX_EXAMPLES if row.max_examples is None else row.max_examples,
        missed=row.missed,
        strikes=row.strikes,
        token_expires_at=row.token_expires_at,
        code_expires_at=row.code_expires_at if row.code_used_at is None else None,
    )
