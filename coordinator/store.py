"""What the coordinator remembers of a federation: rounds, updates and component versions; devices are in `registry.py`.

Each method is one transaction, so a kill between any two leaves a state that `history` can go on from. A device's
update is keyed by (federation, round, device) and so counts exactly once; `commit_round` alone makes new versions.
It knows rows; it does not know the bytes of a component (`blobs.py`), sockets or the clock: ``at`` is passed in, in
seconds since 1970. Every method blocks, and may be called from any thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update

from coordinator.database import reading
from coordinator.registry import Registry
from coordinator.rounds import History
from coordinator.schema import component_versions, devices, federations, rounds, update_components, updates
from tap_core.errors import UsageError


@dataclass(frozen=True)
class Contribution:
    """One component of an accepted update: where its bytes are, n_{i,r}, and the norm of its change if measured."""

    digest: str
    size: int
    examples: int
    norm: float | None = None


@dataclass(frozen=True)
class Version:
    """A component's value: version 0 is that of `tap init`, version t + 1 was made by round t."""

    version: int
    digest: str
    size: int
    contributors: int = 0
    norm: float | None = None
    """Median of its contributors' update norms."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a round, as `tap-coordinator rounds` lists it."""

    round: int
    attempt: int
    status: str
    sampled: tuple[str, ...]
    contributors: tuple[str, ...]
    missing: tuple[str, ...]
    why: str
    opened_at: float
    closed_at: float | None


class Store:
    """The rows of one federation."""

    def __init__(self, engine: Engine, federation: str):
        self.engine = engine
        self.federation = federation
        self.registry = Registry(engine, federation)

    def close(self) -> None:
        self.engine.dispose()

    # the federation

    def begin(self, manifest_digest: str, components: Mapping[str, Version], at: float) -> None:
        """Record the federation and version 0 of its components, if it is new.

        Raises UsageError if it began with another manifest: its versions would not fit the new one.
        """
        with self.engine.begin() as db:
            row = db.execute(select(federations).where(federations.c.name == self.federation)).one_or_none()
            if row is None:
                values = {"name": self.federation, "manifest_digest": manifest_digest, "created_at": at}
                db.execute(insert(federations).values(**values, paused=None, stop_requested=0))
                self._insert_versions(db, components)
            elif row.manifest_digest != manifest_digest:
                raise UsageError(
                    f"manifest.json is not the one that federation {self.federation!r} began with;"
                    " put it back, or serve a new directory"
                )

    def control(self) -> tuple[str | None, bool]:
        """(why the federation is paused or None, whether the service shall stop): what the operator asked for."""
        with reading(self.engine) as db:
            row = self._federation(db)
            return row.paused, bool(row.stop_requested)

    def set_paused(self, why: str | None) -> None:
        with self.engine.begin() as db:
            self._set_federation(db, paused=why[:500] if why else why)

    def request_stop(self, asked: bool) -> None:
        with self.engine.begin() as db:
            self._set_federation(db, stop_requested=int(asked))

    # rounds

    def open_round(self, number: int, attempt: int, sampled: Sequence[str], at: float) -> None:
        with self.engine.begin() as db:
            key = {"federation": self.federation, "round": number, "attempt": attempt}
            row = {"status": "open", "sampled": list(sampled), "contributors": [], "missing": [], "why": ""}
            db.execute(insert(rounds).values(**key, **row, opened_at=at))

    def fail_round(
        self, number: int, attempt: int, missing: Sequence[str], away: Sequence[str], why: str, at: float
    ) -> None:
        with self.engine.begin() as db:
            change = {"status": "failed", "missing": list(missing), "why": why[:2000], "closed_at": at}
            db.execute(update(rounds).where(*self._attempt(number, attempt)).values(**change))
            self._set_away(db, away)

    def commit_round(
        self,
        number: int,
        attempt: int,
        versions: Mapping[str, Version],
        *,
        contributors: Sequence[str],
        missing: Sequence[str],
        away: Sequence[str],
        at: float,
    ) -> None:
        """Make the new versions current, close the round and forget which blobs its updates were: all or nothing."""
        given = update_components
        with self.engine.begin() as db:
            self._insert_versions(db, versions)
            change = {"status": "committed", "contributors": list(contributors), "missing": list(missing)}
            db.execute(update(rounds).where(*self._attempt(number, attempt)).values(**change, closed_at=at))
            db.execute(delete(given).where(given.c.federation == self.federation, given.c.round <= number))
            self._set_away(db, away)

    def add_update(self, number: int, device: str, components: Mapping[str, Contribution], at: float) -> None:
        """Record an update whose blobs are durable. It takes the place of an earlier one of this device for the round:
        a device that was revoked and enrolled anew counts with what it says now, and once."""
        key = {"federation": self.federation, "round": number, "device": device}
        with self.engine.begin() as db:
            for table in (update_components, updates):
                where = (getattr(table.c, name) == value for name, value in key.items())
                db.execute(delete(table).where(*where))
            db.execute(insert(updates).values(**key, accepted_at=at))
            rows = [{**key, "component": name, **vars(given)} for name, given in sorted(components.items())]
            db.execute(insert(update_components), rows)

    def updates(self, number: int) -> dict[str, dict[str, Contribution]]:
        """The accepted updates of a round: device -> component -> contribution."""
        table = update_components
        where = (table.c.federation == self.federation, table.c.round == number)
        found: dict[str, dict[str, Contribution]] = {}
        with reading(self.engine) as db:
            for row in db.execute(select(table).where(*where).order_by(table.c.device, table.c.component)):
                given = Contribution(row.digest, row.size, row.examples, row.norm)
                found.setdefault(row.device, {})[row.component] = given
        return found

    def attempts(self, last: int | None = None) -> list[Attempt]:
        """The attempts, oldest first; the last ``last`` of them if given."""
        order = (rounds.c.round.desc(), rounds.c.attempt.desc())
        query = select(rounds).where(rounds.c.federation == self.federation).order_by(*order).limit(last)
        with reading(self.engine) as db:
            return [_attempt_of(row) for row in reversed(db.execute(query).all())]

    def versions(self) -> dict[str, Version]:
        """The current version of every component."""
        table = component_versions
        query = select(table).where(table.c.federation == self.federation).order_by(table.c.component, table.c.version)
        with reading(self.engine) as db:
            rows = db.execute(query).all()
        return {row.component: Version(row.version, row.digest, row.size, row.contributors, row.norm) for row in rows}

    def referenced(self, number: int) -> set[str]:
        """Digests that must be kept: two versions of every component (a slow device may still be fetching the older),
        and the updates of round ``number`` and later."""
        versions, given = component_versions, update_components
        latest = (
            select(versions.c.component, versions.c.digest)
            .where(versions.c.federation == self.federation)
            .order_by(versions.c.component, versions.c.version.desc())
        )
        pending = select(given.c.digest).where(given.c.federation == self.federation, given.c.round >= number)
        keep: dict[str, list[str]] = {}
        with reading(self.engine) as db:
            for component, digest in db.execute(latest):
                keep.setdefault(component, []).append(digest)
            kept = {digest for digests in keep.values() for digest in digests[:2]}
            return kept | set(db.execute(pending).scalars())

    def history(self) -> History:
        """Where the federation stands, for `Rounds.restore`."""
        with reading(self.engine) as db:
            mine = rounds.c.federation == self.federation
            committed = db.execute(
                select(func.max(rounds.c.round)).where(mine, rounds.c.status == "committed")
            ).scalar_one()
            number = 0 if committed is None else committed + 1
            last = db.execute(
                select(rounds).where(mine, rounds.c.round == number).order_by(rounds.c.attempt.desc()).limit(1)
            ).one_or_none()
            where = (updates.c.federation == self.federation, updates.c.round == number)
            reported = frozenset(db.execute(select(updates.c.device).where(*where)).scalars())
            paused = self._federation(db).paused
        members = [d for d in self.registry.all() if d.revoked_at is None and d.joined_at is not None]
        is_open = last is not None and last.status == "open"
        return History(
            round=number,
            attempt=0 if last is None else last.attempt + (0 if is_open else 1),
            sampled=tuple(last.sampled) if last is not None and is_open else None,
            reported=reported,
            members=frozenset(d.name for d in members),
            away=frozenset(d.name for d in members if d.away),
            done=frozenset(d.name for d in members if d.done_at is not None),
            paused=paused,
        )

    # the parts of transactions

    def _attempt(self, number: int, attempt: int) -> tuple[Any, ...]:
        return (rounds.c.federation == self.federation, rounds.c.round == number, rounds.c.attempt == attempt)

    def _federation(self, db: Connection) -> Row[Any]:
        row = db.execute(select(federations).where(federations.c.name == self.federation)).one_or_none()
        if row is None:
            raise UsageError(f"federation {self.federation!r} has not begun; start it with: tap-coordinator serve DIR")
        return row

    def _set_federation(self, db: Connection, **values: Any) -> None:
        self._federation(db)
        db.execute(update(federations).where(federations.c.name == self.federation).values(**values))

    def _set_away(self, db: Connection, away: Sequence[str]) -> None:
        if away:
            where = (devices.c.federation == self.federation, devices.c.name.in_(away))
            db.execute(update(devices).where(*where).values(away=1))

    def _insert_versions(self, db: Connection, versions: Mapping[str, Version]) -> None:
        rows = [
            {"federation": self.federation, "component": name, **vars(value)}
            for name, value in sorted(versions.items())
        ]
        if rows:
            db.execute(insert(component_versions), rows)


def _attempt_of(row: Row[Any]) -> Attempt:
    return Attempt(
        round=row.round,
        attempt=row.attempt,
        status=row.status,
        sampled=tuple(row.sampled),
        contributors=tuple(row.contributors),
        missing=tuple(row.missing),
        why=row.why,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
    )
