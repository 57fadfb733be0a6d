"""What a trigger is made of (docs/method.md section 9). It knows one task at a time; it knows no rounds and no files.

Shapes: n examples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from tap_core.algorithms.device import Local
    from tap_core.algorithms.tap import TapSettings
    from tap_core.model.adapters import ParameterSet
    from tap_core.model.tap_model import TapModel
    from tap_core.names import ComponentName
    from tap_core.settings.federation import TaskConfig
    from tap_core.tasks.batch import TaskBatch


class ExampleIndicator(ABC):
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

    def of_all(self, model: "TapModel", parameter_set: "ParameterSet", batches: "Iterable[TaskBatch]") -> "Tensor":
        """Score all batches of a task.

        Args:
            model: The device's model.
            parameter_set: The set to score.
            batches: The batches.

        Returns:
            float32 or float64 (examples of all batches,); lower is better.
        """
        import torch

        found = [self.scores(model, parameter_set, batch) for batch in batches]
        return torch.cat(found) if found else torch.empty(0)


class ComponentIndicator(ABC):
    """What each component is worth, so that each is decided by itself."""

    @abstractmethod
    def gains(self, local: "Local", task: "TaskConfig") -> Mapping["ComponentName", np.ndarray]:
        """What replacing each component alone would bring.

        Args:
            local: The device, whose model holds both sets.
            task: The task whose decision set it is measured on.

        Returns:
            By component of the task, float64 (any number,), whose mean counts, more being better, and whose scatter
            says how sure it is.
        """


@dataclass(frozen=True)
class Evidence:
    """What a device knows about one task when it decides.

    ``federated_loss`` and ``personal_loss``: h_fed[o] of this round and h_personal[o] of the round before, mean
    training losses per example; the latter is infinite before the first participation. ``held_out``: the scores of the
    federated and of the personal set on the same held-out examples, float64 (n,) each, or zeros and what a component is
    worth; only for a decision that `needs_held_out`.
    """

    task: "TaskConfig"
    federated_loss: float
    personal_loss: float
    held_out: Callable[[], tuple[np.ndarray, np.ndarray]]


class Decision(ABC):
    """If a task's personal components become copies of the federated ones: R[o] of docs/method.md section 4, step 3."""

    needs_held_out: ClassVar[bool] = False
    """Whether a decision set is cut from each task's training items, which are then never trained on."""

    def __init__(self, settings: "TapSettings") -> None:
        self.settings = settings

    @abstractmethod
    def replaces(self, evidence: Evidence) -> bool:
        """R[o]. A device's first participation always replaces: the caller sees to that.

        Args:
            evidence: What the device knows about the task.

        Returns:
            Whether the task's personal components become copies of the federated ones.
        """
