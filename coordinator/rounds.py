"""The course of a federation as a pure state machine: events and ``now`` in, actions out (docs/method.md section 4).

    waiting --enough members--> open --all reported, or deadline with a quorum--> closing --Committed--> open ...
       ^                         |                                                           last round: finishing
       +--roster too small-------+--deadline without a quorum: the attempt fails, the next one opens     |
       +--Spent (components went back to earlier versions): the next round opens   Lost: closing --> open|
                                                                                 all devices done: finished

Pausing is a flag beside the phase: the open round goes on to its close and no other opens.

No device may starve the others. One that misses a deadline while it is not connected, or a second one in a row, and one
whose update was rejected, is `away`: it is not sampled until it comes back, by reconnecting or by moving on. Rejections
are strikes; with too many of them it is barred, whatever it does. What is known to be missing is not waited for: a
rejection or a decline takes the device out of the attempt. When an attempt fails, the next ones sample those that have
not yet been missing in this round, as long as they are enough.

The machine knows names of devices and numbers of rounds. It knows no files, sockets, tensors or clocks: the caller
passes ``now`` (seconds of any clock that never goes back), calls again at `deadline()`, and carries out the actions in
order. It is rebuilt after a restart from what the caller has recorded: `Rounds.restore`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from coordinator.events import (
    Action,
    CloseRound,
    Committed,
    Completed,
    Declined,
    FailRound,
    Finish,
    Hold,
    Joined,
    Left,
    Lost,
    OpenRound,
    Pause,
    Progressed,
    Rejected,
    Removed,
    Renewed,
    Reported,
    Resume,
    RoundEvent,
    Spent,
)
from tap_core.names import DeviceName
from tap_core.samplers import SAMPLERS
from tap_core.settings.federation import RoundsConfig

FederationPhase = Literal["waiting", "open", "closing", "finishing", "finished"]
Excuse = Literal["rejected", "declined"]
"""Why an attempt does not wait for a device any more."""

MAX_ATTEMPTS = 5
"""Attempts at one round that may fail one after the other before the federation pauses and waits for its operator."""

MAX_MISSED = 2
"""Deadlines in a row that a connected device may miss before it is taken for away."""


@dataclass(frozen=True)
class OpenAttempt:
    """The attempt that is under way: who was asked, who has reported, and who is not waited for in spite of that."""

    attempt: int
    sampled: tuple[DeviceName, ...]
    reported: frozenset[DeviceName]
    deadline: float
    excused: Mapping[DeviceName, Excuse] = field(default_factory=dict)
    late: frozenset[DeviceName] = frozenset()
    """Whose missed deadline is counted already: an attempt that lost an update closes twice."""


@dataclass(frozen=True)
class History:
    """What a machine is rebuilt from after a restart, all of it recorded by the actions.

    ``round`` is the first that is not committed (the total, if all are). ``sampled`` is None if no attempt is open;
    ``attempt`` is then the next one's number. ``members`` are the devices that joined and are not revoked. ``missed``
    and ``strikes`` are the counts above 0, ``absent`` the devices that were missing in a failed attempt of this round.
    """

    round: int = 0
    attempt: int = 0
    sampled: tuple[DeviceName, ...] | None = None
    reported: frozenset[DeviceName] = frozenset()
    members: frozenset[DeviceName] = frozenset()
    away: frozenset[DeviceName] = frozenset()
    done: frozenset[DeviceName] = frozenset()
    paused: str | None = None
    excused: Mapping[DeviceName, Excuse] = field(default_factory=dict)
    missed: Mapping[DeviceName, int] = field(default_factory=dict)
    strikes: Mapping[DeviceName, int] = field(default_factory=dict)
    absent: frozenset[DeviceName] = frozenset()


@dataclass
class Rounds:
    """The machine. Read its attributes freely; only `handle` changes them."""

    config: RoundsConfig
    seed: int
    round: int = 0
    attempt: int = 0
    phase: FederationPhase = "waiting"
    paused: str | None = None
    current: OpenAttempt | None = None
    members: set[DeviceName] = field(default_factory=set)
    connected: set[DeviceName] = field(default_factory=set)
    away: set[DeviceName] = field(default_factory=set)
    done: set[DeviceName] = field(default_factory=set)
    earlier: set[DeviceName] = field(default_factory=set)
    """Devices whose update for this round is durable; it counts in every attempt that samples them."""
    absent: set[DeviceName] = field(default_factory=set)
    """Devices that were missing in a failed attempt of this round."""
    missed: dict[DeviceName, int] = field(default_factory=dict)
    """Deadlines missed in a row, if any, by device."""
    strikes: dict[DeviceName, int] = field(default_factory=dict)
    """Updates rejected since the last one accepted, if any, by device."""
    failures: int = 0
    """Attempts at this round that failed since it began, the service started or the operator resumed."""
    declines: list[tuple[DeviceName, ...]] = field(default_factory=list)
    """Of those attempts the ones in which devices declined: which."""

    @classmethod
    def restore(cls, config: RoundsConfig, seed: int, history: History, now: float) -> "tuple[Rounds, list[Action]]":
        """The machine as it was, and the actions that are due at once. An open attempt gets its whole time again, for
        the devices have to reconnect first, and failures are counted anew."""
        machine = cls(config, seed, history.round, history.attempt, paused=history.paused)
        machine.members, machine.away, machine.done = set(history.members), set(history.away), set(history.done)
        machine.earlier, machine.absent = set(history.reported), set(history.absent)
        machine.missed, machine.strikes = dict(history.missed), dict(history.strikes)
        if history.round >= config.total:
            machine.phase = "finishing"
            return machine, [Finish(), *machine._advance(now)]
        if history.sampled is not None:
            machine._open(history.sampled, now, history.excused)
        return machine, machine._advance(now)

    def deadline(self) -> float | None:
        """When to call with ``Tick`` if nothing else happens; None if only an event can change anything."""
        return self.current.deadline if self.phase == "open" and self.current else None

    @property
    def roster(self) -> tuple[DeviceName, ...]:
        """The devices that may be sampled: members, less those that are away or barred."""
        return tuple(sorted(self.members - self.away - self.barred))

    @property
    def barred(self) -> frozenset[DeviceName]:
        """Devices with too many strikes: not sampled until the operator renews their token."""
        return frozenset(d for d, strikes in self.strikes.items() if strikes >= self.config.max_strikes)

    @property
    def missing(self) -> tuple[DeviceName, ...]:
        """Sampled devices that the open attempt still waits for."""
        if self.current is None:
            return ()
        settled = self.current.reported | self.current.excused.keys()
        return tuple(d for d in self.current.sampled if d not in settled and d in self.members)

    @property
    def contributors(self) -> tuple[DeviceName, ...]:
        """Devices of the open attempt whose update counts."""
        if self.current is None:
            return ()
        return tuple(d for d in self.current.sampled if d in self.current.reported and d in self.members)

    def awaits(self, device: DeviceName) -> bool:
        """Whether the open attempt wants an update from this device."""
        return self.phase == "open" and device in self.missing

    def handle(self, event: RoundEvent, now: float) -> list[Action]:
        """Take one event at ``now``; the actions are to be carried out in order before the next event."""
        match event:
            case Joined(device):
                self.members.add(device)
                self.connected.add(device)
                self.away.discard(device)
            case Left(device):
                self.connected.discard(device)
            case Reported(round_number, device):
                if self._awaits(round_number, device):
                    self._report(device)
            case Rejected(round_number, device) if device in self.members:
                self.strikes[device] = self.strikes.get(device, 0) + 1
                self.away.add(device)
                self._excuse(round_number, device, "rejected")
            case Declined(round_number, device):
                self._excuse(round_number, device, "declined")
            case Progressed(device) if device in self.connected:
                self.away.discard(device)
            case Renewed(device):
                self.missed.pop(device, None)
                self.strikes.pop(device, None)
            case Committed(round_number) if self.phase == "closing" and round_number == self.round:
                return self._next_round(now)
            case Spent(round_number) if self.phase in ("waiting", "open") and round_number == self.round:
                return self._next_round(now)
            case Lost(round_number, devices) if self.current is not None and round_number == self.round:
                self.earlier.difference_update(devices)
                self.current = replace(self.current, reported=self.current.reported.difference(devices))
                self.phase = "open"
            case Completed(device) if self.phase == "finishing" and device in self.members:
                self.done.add(device)
            case Removed(device):
                for group in (self.members, self.connected, self.away, self.done, self.earlier):
                    group.discard(device)
                self.missed.pop(device, None)
                self.strikes.pop(device, None)
            case Pause(why):
                self.paused = why
            case Resume():
                self.paused, self.failures, self.declines = None, 0, []
            case _:
                pass
        return self._advance(now)

    def _awaits(self, round_number: int, device: DeviceName) -> bool:
        return round_number == self.round and self.awaits(device)

    def _report(self, device: DeviceName) -> None:
        assert self.current is not None
        self.earlier.add(device)
        self.away.discard(device)
        self.missed.pop(device, None)
        self.strikes.pop(device, None)
        self.current = replace(self.current, reported=self.current.reported | {device})

    def _excuse(self, round_number: int, device: DeviceName, excuse: Excuse) -> None:
        if self._awaits(round_number, device):
            assert self.current is not None
            self.current = replace(self.current, excused={**self.current.excused, device: excuse})

    def _advance(self, now: float) -> list[Action]:
        """Every step that is possible now: close or fail the attempt, open the next, end the federation."""
        actions: list[Action] = []
        while self.phase in ("waiting", "open"):
            step = self._close(now) if self.phase == "open" else self._start(now)
            if not step:
                break
            actions += step
        if self.phase == "finishing" and self.members and self.members <= self.done:
            self.phase = "finished"
        return actions

    def _start(self, now: float) -> list[Action]:
        roster = self.roster
        first = self.round == 0 and self.attempt == 0
        needed = max(self.config.min_updates, self.config.min_devices if first else 1)
        if self.paused is not None or len(roster) < needed:
            return []
        fresh = [device for device in roster if device not in self.absent]
        is_hopeful = len(fresh) >= needed
        if len(self.declines) >= MAX_ATTEMPTS or (self.failures >= MAX_ATTEMPTS and not is_hopeful):
            self.paused = self._why_hold()
            return [Hold(self.paused)]
        clients = self.config.clients_per_round
        sample = SAMPLERS.named(self.config.sampler)
        sampled = sample(self.seed, self.round, self.attempt, fresh if is_hopeful else roster, clients)
        self._open(sampled, now)
        return [OpenRound(self.round, self.attempt, sampled)]

    def _why_hold(self) -> str:
        if not self.declines:
            return f"round {self.round} failed {self.failures} times; see its attempts, then resume"
        devices = ", ".join(sorted({device for attempt in self.declines for device in attempt}))
        return (
            f"round {self.round} failed {self.failures} times as devices diverged ({devices}): its values may be bad; "
            "go back to good ones with tap-coordinator rollback DIR --to ROUND, then resume"
        )

    def _open(
        self, sampled: Iterable[DeviceName], now: float, excused: Mapping[DeviceName, Excuse] | None = None
    ) -> None:
        chosen = tuple(sampled)
        reported = frozenset(self.earlier & set(chosen))
        self.current = OpenAttempt(self.attempt, chosen, reported, now + self.config.deadline, dict(excused or {}))
        self.phase = "open"

    def _close(self, now: float) -> list[Action]:
        """Close or fail the open attempt if it is time."""
        assert self.current is not None
        late, contributors = self.missing, self.contributors
        if late and now < self.current.deadline:
            return []
        for device in set(late) - self.current.late:
            self.missed[device] = self.missed.get(device, 0) + 1
        self.current = replace(self.current, late=self.current.late.union(late))
        away = tuple(d for d in late if d not in self.connected or self.missed[d] >= MAX_MISSED)
        self.away.update(away)
        missing = tuple(d for d in self.current.sampled if d in self.members and d not in contributors)
        if len(contributors) >= self.config.min_updates:
            self.phase = "closing"
            return [CloseRound(self.round, self.attempt, contributors, missing, away, late)]
        failed = FailRound(self.round, self.attempt, missing, away, self._shortfall(contributors, late), late)
        if declined := self._excused("declined"):
            self.declines.append(declined)
        self.absent.update(missing)
        self.attempt += 1
        self.failures += 1
        self.phase, self.current = "waiting", None
        return [failed]

    def _excused(self, excuse: Excuse) -> tuple[DeviceName, ...]:
        assert self.current is not None
        return tuple(d for d in self.current.sampled if self.current.excused.get(d) == excuse)

    def _shortfall(self, contributors: tuple[DeviceName, ...], late: tuple[DeviceName, ...]) -> str:
        assert self.current is not None
        causes = {
            f"no update from {{}} within {self.config.deadline:g} s": late,
            "rejected: {}": self._excused("rejected"),
            "diverged: {}": self._excused("declined"),
            "revoked: {}": tuple(d for d in self.current.sampled if d not in self.members),
        }
        named = [text.format(", ".join(devices)) for text, devices in causes.items() if devices]
        return "; ".join([f"{len(contributors)} of the {self.config.min_updates} updates needed", *named])

    def _next_round(self, now: float) -> list[Action]:
        self.round += 1
        self.attempt, self.failures, self.declines = 0, 0, []
        self.earlier.clear()
        self.absent.clear()
        self.phase, self.current = "waiting", None
        if self.round >= self.config.total:
            self.phase = "finishing"
            return [Finish(), *self._advance(now)]
        return self._advance(now)
