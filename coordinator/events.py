"""What can happen to a federation and what must be done about it: the words between `rounds.py` and `federation.py`.

Small frozen classes of names and numbers; nothing here acts.
"""

from dataclasses import dataclass

from tap_core.names import DeviceName

# Events


@dataclass(frozen=True)
class Joined:
    """A device introduced itself, for the first time or again, and is connected."""

    device: DeviceName


@dataclass(frozen=True)
class Left:
    """The device's connection is gone; it stays a member."""

    device: DeviceName


@dataclass(frozen=True)
class Reported:
    """The device's update for ``round`` is durable."""

    round: int
    device: DeviceName


@dataclass(frozen=True)
class Rejected:
    """The device's update for ``round`` was refused for what it held, not for being late: a strike, and no more is
    waited for."""

    round: int
    device: DeviceName


@dataclass(frozen=True)
class Declined:
    """The device says that it cannot take part in ``round``, because its training diverged."""

    round: int
    device: DeviceName


@dataclass(frozen=True)
class Progressed:
    """The device does something: its heartbeats move on, or an update of it came too late."""

    device: DeviceName


@dataclass(frozen=True)
class Renewed:
    """The operator gave the device a new token, and with it a clean sheet."""

    device: DeviceName


@dataclass(frozen=True)
class Committed:
    """The new versions of the components, made by ``CloseRound`` of ``round``, are durable."""

    round: int


@dataclass(frozen=True)
class Lost:
    """The updates of these devices for ``round`` turned out to be damaged: they are asked for again, or are missing."""

    round: int
    devices: tuple[DeviceName, ...]


@dataclass(frozen=True)
class Spent:
    """Components went back to earlier versions, which is recorded: the number ``round`` is used up without a commit."""

    round: int


@dataclass(frozen=True)
class Completed:
    """The device has the final components and has ended stage 2."""

    device: DeviceName


@dataclass(frozen=True)
class Removed:
    """The operator revoked the device: it is sampled no more, and its update of the open round does not count."""

    device: DeviceName


@dataclass(frozen=True)
class Pause:
    """Let the open round close and open no other. ``why`` is shown to the operator."""

    why: str


@dataclass(frozen=True)
class Resume:
    """Go on; a round that used up its attempts gets as many again."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; nothing else happened."""


RoundEvent = (
    Joined
    | Left
    | Reported
    | Rejected
    | Declined
    | Progressed
    | Renewed
    | Committed
    | Lost
    | Spent
    | Completed
    | Removed
    | Pause
    | Resume
    | Tick
)


# Actions


@dataclass(frozen=True)
class OpenRound:
    """Record the attempt and its sample, then tell the sampled devices to train."""

    round: int
    attempt: int
    sampled: tuple[DeviceName, ...]


@dataclass(frozen=True)
class CloseRound:
    """Aggregate the contributors' updates, commit the new versions, then give the machine ``Committed``.

    ``missing`` are the sampled devices that did not contribute. Of them ``late`` missed the deadline, which is to be
    counted, and ``away`` are to be recorded as away.
    """

    round: int
    attempt: int
    contributors: tuple[DeviceName, ...]
    missing: tuple[DeviceName, ...]
    away: tuple[DeviceName, ...]
    late: tuple[DeviceName, ...] = ()


@dataclass(frozen=True)
class FailRound:
    """Record that the attempt failed, why, and who was missing (see CloseRound). No component changes."""

    round: int
    attempt: int
    missing: tuple[DeviceName, ...]
    away: tuple[DeviceName, ...]
    why: str
    late: tuple[DeviceName, ...] = ()


@dataclass(frozen=True)
class Hold:
    """The federation paused itself: record it with the reason, so that a restart does not undo it."""

    why: str


@dataclass(frozen=True)
class Finish:
    """Every round is committed: send the final components to every member, and to each that joins later."""


Action = OpenRound | CloseRound | FailRound | Hold | Finish
