"""What a trigger is made of (docs/method.md section 9). It knows one task at a time; it knows no rounds and no files.

Shapes: n examples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from tap_core.model.adapters import ParameterSet
    from tap_core.model.tap_model import TapModel
    from tap_core.settings.federation import TapConfig, TaskConfig
    from tap_core.tasks.batch import TaskBatch


class Indicator(ABC):
    """A score of each example for a parameter set; lower is better."""

    @abstractmethod
    def scores(self, model: "TapModel", parameter_set: "ParameterSet", batch: "TaskBatch") -> "Tensor":
        """Score examples; the model is in eval mode and no gradient is taken.

        Args:
            model: The device's model.
            parameter_set: The set to score.
            batch: The n examples.

        Returns:
            float32 (n,); lower is better.
        """


@dataclass(frozen=True)
class Evidence:
    """What a device knows about one task when it decides.

    ``federated_loss`` and ``personal_loss``: h_fed[o] of this round and h_personal[o] of the round before, mean
    training losses per example; the latter is infinite before the first participation. ``held_out``: the scores of the
    federated and of the personal set on the same held-out examples, float64 (n,) each; only for a decision that
    `needs_held_out`.
    """

    task: "TaskConfig"
    federated_loss: float
    personal_loss: float
    held_out: Callable[[], tuple[np.ndarray, np.ndarray]]


class Decision(ABC):
    """If a task's personal components become copies of the federated ones: R[o] of docs/method.md section 4, step 3."""

    needs_held_out: ClassVar[bool] = False
    """Whether a decision set is cut from each task's training items, which are then never trained on."""

    def __init__(self, settings: "TapConfig") -> None:
        self.settings = settings

    @abstractmethod
    def replaces(self, evidence: Evidence) -> bool:
        """R[o]. A device's first participation always replaces: the caller sees to that.

        Args:
            evidence: What the device knows about the task.

        Returns:
            Whether the task's personal components become copies of the federated ones.
        """
