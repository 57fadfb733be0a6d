"""The course of a federation as a pure state machine: events and ``now`` in, actions out (METHOD.md section 4).

    waiting --enough members--> open --all reported, or deadline with a quorum--> closing --Committed--> open ...
       ^                         |                                                           last round: finishing
       +--roster too small-------+--deadline without a quorum: the attempt fails, the next one opens     |
       +--Spent (components went back to earlier versions): the next round opens   Lost: closing --> open|
                                                                                 all devices done: finished

Pausing is a flag beside the phase: the open round goes on to its close and no other opens.

The machine knows names of devices and numbers of rounds. It knows no files, sockets, tensors or clocks: the caller
passes ``now`` (seconds of any clock that never goes back), calls again at `deadline()`, and carries out the actions in
order. It is rebuilt after a restart from what the caller has recorded: `Rounds.restore`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from coordinator.events import (
    Action,
    CloseRound,
    Committed,
    Completed,
    Event,
    FailRound,
    Finish,
    Hold,
    Joined,
    Left,
    Lost,
    OpenRound,
    Pause,
    Removed,
    Reported,
    Resume,
    Spent,
)
from tap_core.config import RoundsConfig
from tap_core.sampling import sample_devices

Phase = Literal["waiting", "open", "closing", "finishing", "finished"]

MAX_ATTEMPTS = 5
"""Attempts at one round that may fail one after the other before the federation pauses and waits for its operator."""


@dataclass(frozen=True)
class OpenAttempt:
    """The attempt that is under way: who was asked and who has reported."""

    attempt: int
    sampled: tuple[str, ...]
    reported: frozenset[str]
    deadline: float


@dataclass(frozen=True)
class History:
    """What a machine is rebuilt from after a restart, all of it recorded by the actions.

    ``round`` is the first that is not committed (the total, if all are). ``sampled`` is None if no attempt is open;
    ``attempt`` is then the next one's number. ``members`` are the devices that joined and are not revoked.
    """

    round: int = 0
    attempt: int = 0
    sampled: tuple[str, ...] | None = None
    reported: frozenset[str] = frozenset()
    members: frozenset[str] = frozenset()
    away: frozenset[str] = frozenset()
    done: frozenset[str] = frozenset()
    paused: str | None = None


@dataclass
class Rounds:
    """The machine. Read its attributes freely; only `handle` changes them."""

    config: RoundsConfig
    seed: int
    round: int = 0
    attempt: int = 0
    phase: Phase = "waiting"
    paused: str | None = None
    current: OpenAttempt | None = None
    members: set[str] = field(default_factory=set)
    connected: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failures: int = 0
    earlier: set[str] = field(default_factory=set)
    """Devices whose update for this round is durable; it counts in every attempt that samples them."""

    @classmethod
    def restore(cls, config: RoundsConfig, seed: int, history: History, now: float) -> "tuple[Rounds, list[Action]]":
        """The machine as it was, and the actions that are due at once. An open attempt gets its whole time again, for
        the devices have to reconnect first."""
        machine = cls(config, seed, history.round, history.attempt, paused=history.paused)
        machine.members, machine.away, machine.done = set(history.members), set(history.away), set(history.done)
        machine.earlier = set(history.reported)
        if history.round >= config.total:
            machine.phase = "finishing"
            return machine, [Finish(), *machine._advance(now)]
        if history.sampled is not None:
            machine._open(history.sampled, now)
        return machine, machine._advance(now)

    def deadline(self) -> float | None:
        """When to call with ``Tick`` if nothing else happens; None if only an event can change anything."""
        return self.current.deadline if self.phase == "open" and self.current else None

    @property
    def roster(self) -> tuple[str, ...]:
        """The devices that may be sampled: members, less those that missed a deadline and have not come back since."""
        return tuple(sorted(self.members - self.away))

    @property
    def missing(self) -> tuple[str, ...]:
        """Sampled devices that the open attempt still waits for."""
        if self.current is None:
            return ()
        return tuple(d for d in self.current.sampled if d not in self.current.reported and d in self.members)

    @property
    def contributors(self) -> tuple[str, ...]:
        """Devices of the open attempt whose update counts."""
        if self.current is None:
            return ()
        return tuple(d for d in self.current.sampled if d in self.current.reported and d in self.members)

    def awaits(self, device: str) -> bool:
        """Whether the open attempt wants an update from this device."""
        return self.phase == "open" and device in self.missing

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at ``now``; the actions are to be carried out in order before the next event."""
        match event:
            case Joined(device):
                self.members.add(device)
                self.connected.add(device)
                self.away.discard(device)
            case Left(device):
                self.connected.discard(device)
            case Reported(round_number, device):
                self._report(round_number, device)
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
            case Pause(why):
                self.paused = why
            case Resume():
                self.paused, self.failures = None, 0
            case _:
                pass
        return self._advance(now)

    def _report(self, round_number: int, device: str) -> None:
        if self.phase != "open" or self.current is None or round_number != self.round:
            return
        self.earlier.add(device)
        if device in self.current.sampled:
            reported = self.current.reported | {device}
            self.current = OpenAttempt(self.current.attempt, self.current.sampled, reported, self.current.deadline)

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
        if self.failures >= MAX_ATTEMPTS:
            self.paused = f"round {self.round} failed {self.failures} times; see its attempts, then resume"
            return [Hold(self.paused)]
        sampled = sample_devices(self.seed, self.round, self.attempt, roster, self.config.clients_per_round)
        self._open(sampled, now)
        return [OpenRound(self.round, self.attempt, sampled)]

    def _open(self, sampled: Iterable[str], now: float) -> None:
        chosen = tuple(sampled)
        reported = frozenset(self.earlier & set(chosen))
        self.current = OpenAttempt(self.attempt, chosen, reported, now + self.config.deadline)
        self.phase = "open"

    def _close(self, now: float) -> list[Action]:
        """Close or fail the open attempt if it is time."""
        assert self.current is not None
        missing, contributors = self.missing, self.contributors
        late = now >= self.current.deadline
        if missing and not late:
            return []
        away = tuple(d for d in missing if d not in self.connected)
        self.away.update(away)
        if len(contributors) >= self.config.min_updates:
            self.phase = "closing"
            return [CloseRound(self.round, self.attempt, contributors, missing, away)]
        failed = FailRound(self.round, self.attempt, missing, away, self._shortfall(contributors, missing, late))
        self.attempt += 1
        self.failures += 1
        self.phase, self.current = "waiting", None
        return [failed]

    def _shortfall(self, contributors: tuple[str, ...], missing: tuple[str, ...], late: bool) -> str:
        cause = f"no update from {', '.join(missing)} within {self.config.deadline:g} s" if late and missing else ""
        revoked = [d for d in self.current.sampled if d not in self.members] if self.current else []
        if revoked:
            cause = "; ".join(filter(None, [cause, f"revoked: {', '.join(revoked)}"]))
        return f"{len(contributors)} of the {self.config.min_updates} updates needed; {cause}"

    def _next_round(self, now: float) -> list[Action]:
        self.round += 1
        self.attempt, self.failures = 0, 0
        self.earlier.clear()
        self.phase, self.current = "waiting", None
        if self.round >= self.config.total:
            self.phase = "finishing"
            return [Finish(), *self._advance(now)]
        return self._advance(now)
