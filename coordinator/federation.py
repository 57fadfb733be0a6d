"""Drives a federation: gives events to the machine of `rounds.py` and carries out its actions on store and blobs.

Order is what makes a kill harmless: blobs are durable before a row names them, a row is committed before the machine
goes on, and the machine is rebuilt from rows alone. What the machine decided is recorded however often the disk or the
database has to be asked; damaged bytes are replaced or asked for again, never averaged. All methods run on one event
loop; what blocks runs in threads. It knows no sockets: `devices.py` asks for a device's `assignment` and subscribes.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from coordinator import audit, events, standing
from coordinator.assignments import Assignment, Finishing, Training
from coordinator.blobs import ROUND, BlobError, BlobStore
from coordinator.checks import Membership
from coordinator.cohorts import Watch, home_components
from coordinator.combine import combine
from coordinator.device_registry import Enrolment
from coordinator.forms import Form
from coordinator.metrics import Metrics
from coordinator.norms import Bound, Norms, after
from coordinator.patience import PASSING, Patience
from coordinator.repair import examine, repair_at_start, round_under_way
from coordinator.rounds import Rounds
from coordinator.store import Store
from coordinator.supervisor import Supervisor
from coordinator.tokens import Tokens
from coordinator.versions import Contribution, Version, digests_of
from protocol.names import Digest
from tap_core.manifest import FederationManifest
from tap_core.names import ComponentName, DeviceName

POLL_SECONDS = 0.5
"""How often the operator's wishes (pause, resume, stop, revoke) are looked up in the store."""

log = structlog.get_logger("coordinator.federation")


class Federation:
    """One federation under way. `run` until it returns or raises; the other methods serve the devices meanwhile."""

    def __init__(
        self,
        manifest: FederationManifest,
        store: Store,
        blobs: BlobStore,
        *,
        directory: Path,
        threads: int,
        metrics: Metrics,
    ):
        self.manifest, self.store, self.blobs, self.metrics = manifest, store, blobs, metrics
        self.directory = directory
        self._kept: dict[ComponentName, list[Version]] = {}
        self.forms: dict[ComponentName, Form] = {}
        self.bound, self.norms = Bound(manifest.config), dict[ComponentName, Norms]()
        self.ended = asyncio.Event()
        """Set when every enrolled device has ended stage 2."""
        self._machine: Rounds | None = None
        self._at_home: tuple[int, frozenset[ComponentName]] = (-1, frozenset())
        """The last round that opened, and the components that stay at home in it."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="aggregate")
        self._lock = asyncio.Lock()
        self._moved = asyncio.Event()
        self._opened = time.monotonic()
        self._listeners: list[Callable[[], None]] = []
        self._removed_listeners: list[Callable[[DeviceName, str | None], None]] = []
        self._work, self._cohorts = Supervisor(), Watch(manifest.config)
        patience = Patience(metrics.retries.inc)
        self._surely, self._until_it_works = patience.surely, patience.until_it_works
        self.tokens = Tokens(lambda: store.registry.enrolments(time.time()), self._expel)
        self._repairing: asyncio.Task[None] | None = None

    @property
    def versions(self) -> dict[ComponentName, Version]:
        """The current version of every component."""
        return {name: kept[0] for name, kept in self._kept.items()}

    @property
    def machine(self) -> Rounds:
        assert self._machine is not None, "start() comes first"
        return self._machine

    @property
    def is_started(self) -> bool:
        return self._machine is not None

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the operator asked the service to stop, or when the federation cannot go on."""
        return self._work.stopping

    @property
    def enrolled(self) -> frozenset[DeviceName]:
        """Devices whose token is valid."""
        return self.tokens.devices

    # the service

    async def start(self) -> None:
        """Take up the federation where the store left it."""
        config = self.manifest.config
        how = (config.wire.dtype, config.rounds.aggregation, config.rounds.trim)
        self.forms = {name: Form(name, spec.shapes, *how) for name, spec in self.manifest.components.items()}
        referenced = await asyncio.to_thread(self.store.referenced, config.rounds.keep_versions)
        await asyncio.to_thread(self.blobs.recover, referenced)
        await asyncio.to_thread(repair_at_start, self.directory, self.manifest, self.store, self.blobs)
        self._kept = await asyncio.to_thread(self.store.kept_versions, config.rounds.keep_versions)
        self.norms = await asyncio.to_thread(self.store.norms)
        history = await asyncio.to_thread(self.store.history)
        if (opened := await asyncio.to_thread(self.store.at_home)) is not None:
            self._at_home = opened
        await self.tokens.refresh()
        history = replace(history, members=history.members & self.tokens.devices)  # an expired one is none
        self._machine, actions = Rounds.restore(config.rounds, config.seed, history, time.monotonic())
        log.info("federation", name=config.name, round=history.round, rounds=config.rounds.total, paused=history.paused)
        if history.sampled is not None:
            reported = sorted(history.reported)
            log.info("round goes on", round=history.round, sampled=list(history.sampled), reported=reported)
        await self._perform(actions)
        await self._look_for_single_owners()
        await self._check_ended()
        self._work.spawn(self._watch_deadline())
        self._work.spawn(self._watch_operator())

    async def close(self) -> None:
        """Stop; nothing is lost. Raises the error that stopped the federation, if one did."""
        try:
            await self._work.close()
        finally:
            await asyncio.to_thread(self._pool.shutdown)

    def subscribe(self, changed: Callable[[], None], removed: Callable[[DeviceName, str | None], None]) -> None:
        """Call ``changed`` whenever assignments may have changed, and ``removed`` with each device whose token is void
        and the digest of its new one, None if it was revoked."""
        self._listeners.append(changed)
        self._removed_listeners.append(removed)

    # the devices

    def enrolment(self, device: DeviceName) -> Enrolment:
        """The bounds of a device whose token was just found valid."""
        return self.tokens.enrolments[device]

    async def join(self, device: DeviceName, membership: Membership) -> None:
        """The device introduced itself."""
        is_new = device not in self.machine.members
        await asyncio.to_thread(self.store.registry.register, device, membership.tasks, membership.owned, time.time())
        await self._work.whole(self._join(device))
        if is_new:
            await self._look_for_single_owners()

    async def _join(self, device: DeviceName) -> None:
        async with self._lock:
            if device in self.enrolled:  # else it was revoked since its hello, and `Removed` may have come already
                await self._perform(self.machine.handle(events.Joined(device), time.monotonic()))

    async def _look_for_single_owners(self) -> None:
        if news := self._cohorts.news(await asyncio.to_thread(self.store.registry.all), time.time()):
            log.warning("single owners", why=news)

    async def leave(self, device: DeviceName) -> None:
        """The device's connection is gone."""
        await self._handle(events.Left(device))

    def assignment(self, device: DeviceName, owned: tuple[ComponentName, ...]) -> Assignment | None:
        """What the device should do now; None if it should wait."""
        machine = self.machine
        number, at_home = self._at_home
        components, home = {name: self.versions[name] for name in owned}, tuple(filter(at_home.__contains__, owned))
        if machine.phase in ("finishing", "finished"):
            return Finishing(components, home)
        if machine.current is None or not machine.awaits(device) or number != machine.round:  # not yet recorded
            return None
        seconds = max(0.0, machine.current.deadline - time.monotonic())
        return Training(machine.round, machine.current.attempt, seconds, components, home)

    def awaits(self, device: DeviceName, number: int) -> bool:
        """Whether the open round is ``number`` and waits for this device."""
        return number == self.machine.round and self.machine.awaits(device)

    def has_update(self, device: DeviceName, number: int) -> bool:
        """Whether round ``number``, the current one, already counts an update of this device."""
        return number == self.machine.round and device in self.machine.earlier

    async def accept(self, device: DeviceName, number: int, components: Mapping[ComponentName, Contribution]) -> bool:
        """Record an update whose blobs are stored. False if the round does not wait for it (any more)."""
        return await self._work.whole(self._accept(device, number, components))

    async def _accept(self, device: DeviceName, number: int, components: Mapping[ComponentName, Contribution]) -> bool:
        async with self._lock:
            if not self.awaits(device, number):
                return False
            await asyncio.to_thread(self._record_update, device, number, components)
            log.info("update", round=number, device=device, bytes=sum(c.size for c in components.values()))
            await self._perform(self.machine.handle(events.Reported(number, device), time.monotonic()))
            return True

    def _record_update(self, device: DeviceName, number: int, components: Mapping[ComponentName, Contribution]) -> None:
        self.blobs.seal(device, (given.digest for given in components.values()))
        self.store.add_update(number, device, components, time.time())

    async def reject(self, device: DeviceName, number: int, code: str, why: str) -> None:
        """Count a strike: an update of the device is refused for what it held."""
        log.warning("update rejected", round=number, device=device, code=code, why=why)
        await self._work.whole(self._reject(device, number))

    async def _reject(self, device: DeviceName, number: int) -> None:
        async with self._lock:
            machine = self.machine
            if device in machine.members:
                attempt = machine.current.attempt if machine.current and self.awaits(device, number) else None
                await self._surely(self.store.strike, number, attempt, device)
                await self._perform(machine.handle(events.Rejected(number, device), time.monotonic()))
                if device in machine.barred:
                    log.warning("device barred", device=device, mend=f"tap-coordinator enroll {device} DIR --renew")

    async def decline(self, device: DeviceName, number: int, code: str, why: str) -> None:
        """Go on without the device in this attempt: it says that it cannot take part."""
        log.warning("round declined", round=number, device=device, code=code, why=why)
        await self._work.whole(self._decline(device, number))

    async def _decline(self, device: DeviceName, number: int) -> None:
        async with self._lock:
            machine = self.machine
            if machine.current is not None and self.awaits(device, number):
                await self._surely(self.store.excuse, number, machine.current.attempt, device)
                await self._perform(machine.handle(events.Declined(number, device), time.monotonic()))

    async def progress(self, device: DeviceName) -> None:
        """The device moves on: it is not away."""
        if device in self.machine.away:
            await self._work.whole(self._return(device))

    async def _return(self, device: DeviceName) -> None:
        async with self._lock:
            if device in self.machine.away & self.machine.connected:
                await self._surely(self.store.registry.returned, device)
                await self._perform(self.machine.handle(events.Progressed(device), time.monotonic()))

    async def complete(self, device: DeviceName) -> None:
        """The device has ended stage 2."""
        await asyncio.to_thread(self.store.registry.complete, device, time.time())
        log.info("device done", device=device)
        await self._handle(events.Completed(device))
        await self._check_ended()

    def status(self) -> dict[str, Any]:
        """Where the federation stands: see `standing.live`."""
        return standing.live(self.manifest, self.machine)

    # events and actions

    async def _handle(self, event: events.RoundEvent) -> None:
        await self._work.whole(self._step(event))

    async def _step(self, event: events.RoundEvent) -> None:
        async with self._lock:
            await self._perform(self.machine.handle(event, time.monotonic()))

    async def _perform(self, actions: list[events.Action]) -> None:
        """Carry out the actions in order; called with the lock held (or before anybody else can call)."""
        for action in actions:
            match action:
                case events.OpenRound(number, attempt, sampled):
                    await self._open_round(number, attempt, sampled)
                    self._opened = time.monotonic()
                    log.info("round opens", round=number, attempt=attempt, sampled=list(sampled))
                case events.FailRound(number, attempt, missing, away, why, late):
                    await self._surely(self.store.fail_round, number, attempt, missing, away, why, time.time(), late)
                    self.metrics.attempts.labels("failed").inc()
                    log.warning("round failed", round=number, attempt=attempt, missing=list(missing), why=why)
                case events.CloseRound():
                    self._work.spawn(self._close_round(action))
                case events.Hold(why):
                    await self._surely(self.store.set_paused, why, time.time())
                    log.warning("federation paused", why=why)
                case events.Finish():
                    log.info("last round committed", rounds=self.manifest.config.rounds.total)
        self.metrics.round.set(self.machine.round)
        self.metrics.paused.set(self.machine.paused is not None)
        self._moved.set()
        for changed in self._listeners:
            changed()

    async def _open_round(self, number: int, attempt: int, sampled: tuple[DeviceName, ...]) -> None:
        """Record the attempt. Which components stay at home is decided when a round opens and then holds for all of
        it: a device that has trained once must not be told otherwise."""
        fixed, home = self._at_home
        if fixed != number:
            members = [d for d in await self._surely(self.store.registry.all) if d.name in self.machine.members]
            home = home_components(self.manifest.config, [device.tasks for device in members])
            owned = {name for device in members for name in device.owned}
            if owned & home != owned & self._at_home[1]:
                log.info("components at home", round=number, components=sorted(owned & home))
        await self._surely(self.store.open_round, number, attempt, sampled, time.time(), home)
        self._at_home = number, home

    async def _close_round(self, action: events.CloseRound) -> None:
        """Aggregate, commit in one transaction, clear away what nobody needs any more, and tell the machine."""
        began = time.monotonic()
        updates = await self._surely(self.store.updates, action.round)
        given = {device: updates[device] for device in action.contributors}
        try:
            new = await self._until_it_works(
                lambda: combine(
                    action.round, given, self.forms, self.versions, self.manifest.config.rounds, self.blobs, self._pool
                )
            )
            superseded = await self._surely(self._record_round, action, new, updates)
        except BlobError as error:
            await self._lose(action.round, error)
            return
        seconds = time.monotonic() - began
        self.metrics.attempts.labels("committed").inc()
        self.metrics.aggregation_seconds.observe(seconds)
        self.metrics.round_seconds.observe(time.monotonic() - self._opened)
        facts = {"missing": list(action.missing), "components": len(new), "aggregation_seconds": round(seconds, 3)}
        log.info("round committed", round=action.round, contributors=list(action.contributors), **facts)
        self.blobs.doom(superseded)
        await self._handle(events.Committed(action.round))
        await self._surely(self.blobs.collect)

    def _record_round(
        self,
        action: events.CloseRound,
        new: Mapping[ComponentName, Version],
        updates: Mapping[DeviceName, Mapping[ComponentName, Contribution]],
    ) -> set[Digest]:
        """Returns the digests that nothing refers to any more. No round is open now: an update that comes in will be
        rejected, so none of them can gain a reference meanwhile."""
        self.blobs.seal(ROUND, sorted(set().union(*(version.digests for version in new.values()))))
        who = {"contributors": action.contributors, "missing": action.missing, "away": action.away}
        self.store.commit_round(action.round, action.attempt, new, **who, late=action.late, at=time.time())
        self.blobs.drop_all()
        keep, before = self.manifest.config.rounds.keep_versions, self._kept
        self._kept = {
            name: [new[name], *versions][:keep] if name in new else versions for name, versions in before.items()
        }
        self.norms = after(self.norms, action.round, {name: version.norm for name, version in new.items()})
        given = {contribution.digest for components in updates.values() for contribution in components.values()}
        return (digests_of(before) | given) - digests_of(self._kept)

    async def _lose(self, number: int, error: BlobError) -> None:
        """A stored update is damaged: its device is asked for it again, or is missing if the time is up."""
        devices = await self._surely(self.store.remove_updates, number, error.digest)
        self.metrics.updates.labels("damaged").inc(len(devices))
        log.error("stored update damaged, asking for it again", round=number, devices=devices, why=str(error))
        await self._handle(events.Lost(number, tuple(devices)))

    # damage

    def repair(self) -> None:
        """A global component could not be read: have every one checked, and what is damaged restored or taken back."""
        if self._repairing is None or self._repairing.done():
            self._repairing = self._work.spawn(self._repair())

    async def _repair(self) -> None:
        while True:
            async with self._lock:
                if self.machine.phase != "closing":  # else its end makes new versions
                    return await self._repair_now()
            await asyncio.sleep(POLL_SECONDS)

    async def _repair_now(self) -> None:
        findings = await self._surely(examine, self.directory, self._kept, self.blobs)
        total, machine = self.manifest.config.rounds.total, self.machine
        if findings.go_back:
            history = await self._surely(self.store.history)
            spend = round_under_way(history, total)
            go_back = functools.partial(
                self.store.go_back, act="repair", why=findings.why(), actor=audit.SERVICE, spend=spend, at=time.time()
            )
            await self._surely(go_back, findings.go_back)
            self._kept = await self._surely(self.store.kept_versions, self.manifest.config.rounds.keep_versions)
            self.norms = await self._surely(self.store.norms)
            if spend is not None:
                await self._perform(machine.handle(events.Spent(machine.round), time.monotonic()))
        if findings.lost and machine.paused is None:
            why = f"{findings.lost[0]} is damaged in every kept version; stop, restore a backup, serve and resume"
            await self._surely(self.store.set_paused, why, time.time())
            await self._perform(machine.handle(events.Pause(why), time.monotonic()))
        for changed in self._listeners:
            changed()

    async def _check_ended(self) -> None:
        if self.machine.phase in ("finishing", "finished"):
            now = time.time()
            enrolled = [d for d in await asyncio.to_thread(self.store.registry.all) if d.is_admitted(now)]
            if enrolled and all(d.done_at is not None for d in enrolled):
                self.ended.set()

    # what nobody calls

    async def _watch_deadline(self) -> None:
        while True:
            self._moved.clear()
            deadline = self.machine.deadline()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                await asyncio.wait_for(self._moved.wait(), left)
            except asyncio.TimeoutError:
                await self._handle(events.Tick())

    async def _watch_operator(self) -> None:
        unread = False
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._obey()
                await self.tokens.refresh()
                await self._check_ended()  # whoever is out, or lets a code expire, is no longer waited for
                unread = False
            except PASSING as error:  # a database that is away for a moment: the next look counts
                if not unread:
                    log.error("cannot read the database; it is tried again", error=f"{type(error).__name__}: {error}")
                unread = True

    async def _obey(self) -> None:
        """Pause, resume or stop, if the operator wants that."""
        async with self._lock:
            paused, stop = await asyncio.to_thread(self.store.control)
            if paused != self.machine.paused:
                event = events.Resume() if paused is None else events.Pause(paused)
                log.info("resumed" if paused is None else "paused", why=paused)
                await self._perform(self.machine.handle(event, time.monotonic()))
        if stop:
            log.info("stop requested")
            self._work.stopping.set()

    async def _expel(self, void: Mapping[DeviceName, str | None]) -> None:
        """Turn out the devices whose token is no longer valid: revoked, expired, or enrolled anew."""
        for device, valid in sorted(void.items()):
            log.warning("token void", device=device, replaced=valid is not None)
            for removed in self._removed_listeners:
                removed(device, valid)
            if valid is None:
                await self._handle(events.Removed(device))
            elif not await self._surely(self.store.registry.is_blamed, device):  # a rotated token clears nothing
                await self._handle(events.Renewed(device))
