"""The operators of a federation: names, roles and the digests of their tokens for the HTTP plane.

Each method is one transaction and blocks. It knows rows of the table `operators`; it does not know requests. ``at`` is
in seconds since 1970.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import Engine, insert, select, update

from coordinator import audit
from coordinator.database import reading
from coordinator.schema import operators
from tap_core.errors import UsageError

Role = Literal["read", "write"]
ROLES: tuple[Role, ...] = ("read", "write")
"""`read` sees everything, `write` may act as well."""


@dataclass(frozen=True)
class Operator:
    """A row of the table. ``expires_at``: None for never."""

    name: str
    token_sha256: str
    role: Role
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    def is_valid(self, at: float) -> bool:
        """Whether the token opens the HTTP plane: neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > at)


class OperatorRegistry:
    """The operators of one federation."""

    def __init__(self, engine: Engine, federation: str):
        self._engine = engine
        self._federation = federation

    def add(
        self, name: str, token_sha256: str, role: Role, at: float, *, expires_at: float | None = None, actor: str
    ) -> None:
        """Admit an operator. Raises UsageError if there is one of that name whose token is valid."""
        values: dict[str, Any] = {"token_sha256": token_sha256, "role": role, "created_at": at}
        values |= {"expires_at": expires_at, "revoked_at": None}
        with self._engine.begin() as db:
            row = db.execute(select(operators).where(*self._named(name))).one_or_none()
            if row is None:
                db.execute(insert(operators).values(federation=self._federation, name=name, **values))
            elif _operator(row).is_valid(at):
                raise UsageError(
                    f"operator {name!r} has a token; revoke it first: tap-coordinator operator revoke {name} DIR"
                )
            else:
                db.execute(update(operators).where(*self._named(name)).values(**values))
            detail = role + ("" if expires_at is None else f", expires {audit.clock(expires_at)}")
            audit.record(db, self._federation, at, actor, "operator add", name, detail)

    def revoke(self, name: str, at: float, *, actor: str) -> None:
        """Void the operator's token. Raises UsageError if there is none."""
        with self._engine.begin() as db:
            where = (*self._named(name), operators.c.revoked_at.is_(None))
            if not db.execute(update(operators).where(*where).values(revoked_at=at)).rowcount:
                raise UsageError(f"there is no operator {name!r}; see: tap-coordinator operator list")
            audit.record(db, self._federation, at, actor, "operator revoke", name)

    def all(self) -> list[Operator]:
        """Every operator ever added, revoked ones included, sorted by name."""
        query = select(operators).where(operators.c.federation == self._federation).order_by(operators.c.name)
        with reading(self._engine) as db:
            return [_operator(row) for row in db.execute(query)]

    def _named(self, name: str) -> tuple[Any, ...]:
        return (operators.c.federation == self._federation, operators.c.name == name)


def _operator(row: Any) -> Operator:
    role = cast(Role, row.role)
    return Operator(row.name, row.token_sha256, role, row.created_at, row.expires_at, row.revoked_at)
