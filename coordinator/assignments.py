"""What a device is told to do: train a round, or finish. Small frozen classes of names and versions."""

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.versions import Version
from tap_core.names import ComponentName


@dataclass(frozen=True)
class Training:
    """Train the round ``round`` from these values; ``seconds`` are left. ``home``: which of them stay at home."""

    round: int
    attempt: int
    seconds: float
    components: Mapping[ComponentName, Version]
    home: tuple[ComponentName, ...] = ()


@dataclass(frozen=True)
class Finishing:
    """The federation has ended: these are the final values, but for those of components at ``home``."""

    components: Mapping[ComponentName, Version]
    home: tuple[ComponentName, ...] = ()


Assignment = Training | Finishing
