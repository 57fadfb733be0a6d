"""Algorithms of personalization: one file each, one line below (docs/method.md section 10). This loads no torch."""

from typing import TYPE_CHECKING

from tap_core.faces import imported_when_asked
from tap_core.registry import Registry

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "DeviceState",
    "FinishOutcome",
    "Local",
    "Part",
    "Participant",
    "RoundOutcome",
    "TaskResult",
]

if TYPE_CHECKING:
    from tap_core.algorithms.base import Algorithm, DeviceState, Local, Part
    from tap_core.algorithms.participant import FinishOutcome, Participant, RoundOutcome, TaskResult
else:
    __getattr__ = imported_when_asked(
        __name__,
        {
            "base": ("Algorithm", "DeviceState", "Local", "Part"),
            "participant": ("FinishOutcome", "Participant", "RoundOutcome", "TaskResult"),
        },
    )

ALGORITHMS: "Registry[type[Algorithm]]" = Registry("algorithm", "tap_edge.algorithms")
ALGORITHMS.add("tap", "tap_core.algorithms.tap:Tap")
