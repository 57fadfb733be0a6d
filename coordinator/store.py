"""What the coordinator remembers of a federation: rounds, updates and component versions; devices are in
`device_registry.py`.

Each method is one transaction, so a kill between any two leaves a state that `history` can go on from. A device's
update is keyed by (federation, round, device) and so counts exactly once; `commit_round` alone makes new versions, and
`go_back` alone withdraws them. A round whose number is used up without a commit is *spent*.
It knows rows; it does not know the bytes of a component (`blobs.py`), sockets or the clock: ``at`` is passed in, in
seconds since 1970. Every method blocks, and may be called from any thread.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update

from coordinator.audit import SERVICE, record
from coordinator.database import reading
from coordinator.device_registry import Registry
from coordinator.norms import WINDOW, Norms
from coordinator.rounds import Excuse, History
from coordinator.schema import component_versions, devices, federations, rounds, update_components, updates
from coordinator.versions import Contribution, Version, digests_of
from protocol.names import Digest
from tap_core.errors import UsageError
from tap_core.names import ComponentName, DeviceName


@dataclass(frozen=True)
class Attempt:
    """One attempt at a round, as `tap-coordinator rounds` lists it."""

    round: int
    attempt: int
    status: str
    sampled: tuple[DeviceName, ...]
    contributors: tuple[DeviceName, ...]
    missing: tuple[DeviceName, ...]
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

    def identity(self) -> str | None:
        """What the state directory and this database have in common; None if the federation has not begun here (or
        began before there were identities: see `has_begun`)."""
        with reading(self.engine) as db:
            return db.execute(
                select(federations.c.identity).where(federations.c.name == self.federation)
            ).scalar_one_or_none()

    def has_begun(self) -> bool:
        with reading(self.engine) as db:
            query = select(federations.c.name).where(federations.c.name == self.federation)
            return db.execute(query).one_or_none() is not None

    def begin(
        self,
        manifest_digest: str,
        components: Mapping[ComponentName, Version],
        identity: str,
        at: float,
        *,
        actor: str = SERVICE,
    ) -> None:
        """Record the federation and version 0 of its components, if it is new, and its identity, if it has none.

        Raises UsageError if it began with another manifest: its versions would not fit the new one.
        """
        with self.engine.begin() as db:
            row = db.execute(select(federations).where(federations.c.name == self.federation)).one_or_none()
            if row is None:
                values = {"name": self.federation, "manifest_digest": manifest_digest, "created_at": at}
                db.execute(insert(federations).values(**values, paused=None, stop_requested=0, identity=identity))
                self._insert_versions(db, components)
                record(db, self.federation, at, actor, "begin", self.federation)
            elif row.manifest_digest != manifest_digest:
                raise UsageError(
                    f"manifest.json is not the one that federation {self.federation!r} began with;"
                    " put it back, or serve a new directory"
                )
            elif row.identity is None:
                self._set_federation(db, identity=identity)

    def control(self) -> tuple[str | None, bool]:
        """(why the federation is paused or None, whether the service shall stop): what the operator asked for."""
        with reading(self.engine) as db:
            row = self._federation(db)
            return row.paused, bool(row.stop_requested)

    def set_paused(self, why: str | None, at: float, *, actor: str = SERVICE) -> None:
        with self.engine.begin() as db:
            self._set_federation(db, paused=why[:500] if why else why)
            record(db, self.federation, at, actor, "resume" if why is None else "pause", detail=why or "")

    def request_stop(self, at: float, *, actor: str = SERVICE) -> None:
        """Ask the service to end; `clear_stop` takes it back."""
        with self.engine.begin() as db:
            self._set_federation(db, stop_requested=1)
            record(db, self.federation, at, actor, "stop")

    def clear_stop(self) -> None:
        """Forget a request to stop: a service starts."""
        with self.engine.begin() as db:
            self._set_federation(db, stop_requested=0)

    def record(self, act: str, actor: str, detail: str, at: float) -> None:
        """Add an act that changes no row to the audit log."""
        with self.engine.begin() as db:
            record(db, self.federation, at, actor, act, detail=detail)

    # rounds

    def open_round(
        self, number: int, attempt: int, sampled: Sequence[DeviceName], at: float, home: Collection[ComponentName] = ()
    ) -> None:
        """Record an attempt, and the components that stay at home in it. The same once more changes nothing: a commit
        whose answer was lost may be tried again."""
        with self.engine.begin() as db:
            if db.execute(select(rounds.c.round).where(*self._attempt(number, attempt))).one_or_none() is not None:
                return
            key = {"federation": self.federation, "round": number, "attempt": attempt}
            row = {"status": "open", "sampled": list(sampled), "contributors": [], "missing": [], "why": ""}
            row |= {"home": sorted(home)}
            db.execute(insert(rounds).values(**key, **row, opened_at=at))

    def at_home(self) -> tuple[int, frozenset[ComponentName]] | None:
        """(round, components that stay at home in it) of the last round that was opened; None before the first."""
        query = select(rounds.c.round, rounds.c.home).where(rounds.c.federation == self.federation)
        last = query.where(rounds.c.home.is_not(None)).order_by(rounds.c.round.desc()).limit(1)
        with reading(self.engine) as db:
            row = db.execute(last).one_or_none()
        return None if row is None else (row.round, frozenset(row.home))

    def fail_round(
        self,
        number: int,
        attempt: int,
        missing: Sequence[DeviceName],
        away: Sequence[DeviceName],
        why: str,
        at: float,
        late: Sequence[DeviceName] = (),
    ) -> None:
        with self.engine.begin() as db:
            change = {"status": "failed", "missing": list(missing), "why": why[:2000], "closed_at": at}
            is_open = (*self._attempt(number, attempt), rounds.c.status == "open")
            if db.execute(update(rounds).where(*is_open).values(**change)).rowcount:  # once more changes nothing
                self._set_missing(db, away, late)

    def commit_round(
        self,
        number: int,
        attempt: int,
        versions: Mapping[ComponentName, Version],
        *,
        contributors: Sequence[DeviceName],
        missing: Sequence[DeviceName],
        away: Sequence[DeviceName],
        at: float,
        late: Sequence[DeviceName] = (),
    ) -> None:
        """Make the new versions current, close the round and forget which blobs its updates were: all or nothing.

        Once more changes nothing, as with `open_round`.
        """
        given = update_components
        with self.engine.begin() as db:
            status = select(rounds.c.status).where(*self._attempt(number, attempt))
            if db.execute(status).scalar_one_or_none() == "committed":
                return
            self._insert_versions(db, versions)
            change = {"status": "committed", "contributors": list(contributors), "missing": list(missing)}
            db.execute(update(rounds).where(*self._attempt(number, attempt)).values(**change, closed_at=at))
            db.execute(delete(given).where(given.c.federation == self.federation, given.c.round <= number))
            self._set_missing(db, away, late)

    def add_update(
        self, number: int, device: DeviceName, components: Mapping[ComponentName, Contribution], at: float
    ) -> None:
        """Record an update whose blobs are durable. It takes the place of an earlier one of this device for the round:
        a device that was revoked and enrolled anew counts with what it says now, and once. What was held against the
        device is forgotten."""
        key = {"federation": self.federation, "round": number, "device": device}
        with self.engine.begin() as db:
            for table in (update_components, updates):
                where = (getattr(table.c, name) == value for name, value in key.items())
                db.execute(delete(table).where(*where))
            db.execute(insert(updates).values(**key, accepted_at=at))
            rows = [{**key, "component": name, **vars(given)} for name, given in sorted(components.items())]
            if rows:  # a device all of whose components stay at home sends none
                db.execute(insert(update_components), rows)
            self._set_device(db, device, away=0, missed=0, strikes=0)

    def strike(self, number: int, attempt: int | None, device: DeviceName) -> None:
        """Record that an update of the device was rejected: it is away, with a strike more, and ``attempt`` (None: the
        one that is open does not wait for it anyway) goes on without it."""
        with self.engine.begin() as db:
            self._set_device(db, device, away=1, strikes=devices.c.strikes + 1)
            if attempt is not None:
                self._excuse(db, number, attempt, device, "rejected")

    def excuse(self, number: int, attempt: int, device: DeviceName) -> None:
        """Record that the device declined, so that the attempt goes on without it."""
        with self.engine.begin() as db:
            self._excuse(db, number, attempt, device, "declined")

    def remove_updates(self, number: int, digest: Digest) -> list[DeviceName]:
        """Forget the updates of a round that this blob, which is lost, is part of; returns their devices, sorted."""
        given = update_components
        mine = (given.c.federation == self.federation, given.c.round == number)
        with self.engine.begin() as db:
            found = db.execute(select(given.c.device).where(*mine, given.c.digest == digest).distinct()).scalars()
            devices = sorted(found)
            for table in (update_components, updates):
                where = (table.c.federation == self.federation, table.c.round == number, table.c.device.in_(devices))
                db.execute(delete(table).where(*where))
        return devices

    def updates(self, number: int) -> dict[DeviceName, dict[ComponentName, Contribution]]:
        """The accepted updates of a round: device -> component -> contribution. An update may hold none; once the
        round is committed, none does."""
        table = update_components
        where = (table.c.federation == self.federation, table.c.round == number)
        accepted = select(updates.c.device).where(updates.c.federation == self.federation, updates.c.round == number)
        with reading(self.engine) as db:
            found: dict[DeviceName, dict[ComponentName, Contribution]] = {
                device: {} for device in db.execute(accepted).scalars()
            }
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

    def versions(self) -> dict[ComponentName, Version]:
        """The current version of every component."""
        return {name: kept[0] for name, kept in self.kept_versions(1).items()}

    def norms(self) -> dict[ComponentName, Norms]:
        """The update norms of every component's last versions, those that were taken back left out."""
        table = component_versions
        where = (table.c.federation == self.federation, table.c.norm.is_not(None), table.c.withdrawn_at.is_(None))
        query = select(table.c.component, table.c.version, table.c.norm).where(*where)
        found: dict[ComponentName, Norms] = {}
        with reading(self.engine) as db:
            for component, version, norm in db.execute(query.order_by(table.c.component, table.c.version)):
                found[component] = (*found.get(component, ()), (version - 1, norm))[-WINDOW:]
        return found

    def kept_versions(self, number: int) -> dict[ComponentName, list[Version]]:
        """The newest ``number`` versions of every component that were not withdrawn, the current one first. One that
        was older than that when newer ones were withdrawn is left out: its blob was cleared away."""
        table = component_versions
        mine = (table.c.federation == self.federation, table.c.withdrawn_at.is_(None))
        place = func.row_number().over(partition_by=table.c.component, order_by=table.c.version.desc()).label("place")
        ranked = select(table, place).where(*mine).subquery()
        query = select(ranked).where(ranked.c.place <= number).order_by(ranked.c.component, ranked.c.version.desc())
        back = select(table.c.component, table.c.version, table.c.withdrawn_at)
        back = back.where(table.c.federation == self.federation, table.c.withdrawn_at.is_not(None))
        kept: dict[ComponentName, list[Version]] = {}
        withdrawn: dict[ComponentName, list[tuple[int, float]]] = {}
        with reading(self.engine) as db:
            for row in db.execute(query):
                version = Version(row.version, row.digest, row.size, row.contributors, row.norm, row.moments)
                kept.setdefault(row.component, []).append(version)
            for component, number_taken_back, at in db.execute(back):
                withdrawn.setdefault(component, []).append((number_taken_back, at))
        return {name: _still_there(found, withdrawn.get(name, []), number) for name, found in kept.items()}

    def referenced(self, keep_versions: int) -> set[Digest]:
        """Digests of the blobs that must be there: the kept versions, and the updates that are not yet aggregated."""
        kept = digests_of(self.kept_versions(keep_versions))
        query = select(update_components.c.digest).where(update_components.c.federation == self.federation)
        with reading(self.engine) as db:
            return kept | set(db.execute(query).scalars())

    def go_back(
        self,
        targets: Mapping[ComponentName, int],
        *,
        act: str,
        why: str,
        actor: str,
        spend: tuple[int, int] | None,
        at: float,
    ) -> None:
        """Withdraw every version of the components of ``targets`` that is newer than the number given there.

        Devices have trained the open round from what is withdrawn, so ``spend``, the (round, attempt) under way, is
        used up with it: its updates are forgotten, and the next number opens. All in one transaction, with the audit
        log.
        """
        table, given = component_versions, update_components
        with self.engine.begin() as db:
            for name, number in sorted(targets.items()):
                newer = (table.c.federation == self.federation, table.c.component == name, table.c.version > number)
                db.execute(update(table).where(*newer, table.c.withdrawn_at.is_(None)).values(withdrawn_at=at))
            if spend is not None:
                values = {"status": "spent", "why": why[:2000], "closed_at": at}
                if not db.execute(update(rounds).where(*self._attempt(*spend)).values(**values)).rowcount:
                    key = {"federation": self.federation, "round": spend[0], "attempt": spend[1], "opened_at": at}
                    db.execute(insert(rounds).values(**key, **values, sampled=[], contributors=[], missing=[]))
                for forgotten in (given, updates):
                    where = (forgotten.c.federation == self.federation, forgotten.c.round == spend[0])
                    db.execute(delete(forgotten).where(*where))
            record(db, self.federation, at, actor, act, detail=why)

    def history(self) -> History:
        """Where the federation stands, for `Rounds.restore`."""
        with reading(self.engine) as db:
            mine = rounds.c.federation == self.federation
            over = rounds.c.status.in_(("committed", "spent"))
            last_over = db.execute(select(func.max(rounds.c.round)).where(mine, over)).scalar_one()
            number = 0 if last_over is None else last_over + 1
            last = db.execute(
                select(rounds).where(mine, rounds.c.round == number).order_by(rounds.c.attempt.desc()).limit(1)
            ).one_or_none()
            where = (updates.c.federation == self.federation, updates.c.round == number)
            reported = frozenset(db.execute(select(updates.c.device).where(*where)).scalars())
            failed = (mine, rounds.c.round == number, rounds.c.status == "failed")
            absent = [name for names in db.execute(select(rounds.c.missing).where(*failed)).scalars() for name in names]
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
            excused=dict(last.missing) if last is not None and is_open else {},
            missed={d.name: d.missed for d in members if d.missed},
            strikes={d.name: d.strikes for d in members if d.strikes},
            absent=frozenset(absent),
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

    def _set_missing(self, db: Connection, away: Sequence[DeviceName], late: Sequence[DeviceName]) -> None:
        for device in away:
            self._set_device(db, device, away=1)
        for device in late:
            self._set_device(db, device, missed=devices.c.missed + 1)

    def _set_device(self, db: Connection, device: DeviceName, **values: Any) -> None:
        where = (devices.c.federation == self.federation, devices.c.name == device)
        db.execute(update(devices).where(*where).values(**values))

    def _excuse(self, db: Connection, number: int, attempt: int, device: DeviceName, excuse: Excuse) -> None:
        row = db.execute(select(rounds.c.missing).where(*self._attempt(number, attempt))).one()
        excused = {**dict(row.missing), device: excuse}
        db.execute(update(rounds).where(*self._attempt(number, attempt)).values(missing=excused))

    def _insert_versions(self, db: Connection, versions: Mapping[ComponentName, Version]) -> None:
        rows = [
            {"federation": self.federation, "component": name, **vars(value)}
            for name, value in sorted(versions.items())
        ]
        if rows:
            db.execute(insert(component_versions), rows)


def _still_there(newest: list[Version], withdrawn: list[tuple[int, float]], number: int) -> list[Version]:
    """Of the ``newest`` versions that count those that no withdrawal, of (version, time), found beyond ``number``."""
    known = [(version.version, math.inf) for version in newest] + withdrawn
    current = {at: max(version for version, then in withdrawn if then == at) for _, at in withdrawn}  # just before

    def was_cleared(old: int) -> bool:
        newer = (sum(old < v <= last and until >= at for v, until in known) for at, last in current.items())
        return any(count >= number for count in newer)

    return newest[:1] + [version for version in newest[1:] if not was_cleared(version.version)]


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
