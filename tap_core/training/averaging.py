"""The mean of a parameter set's values over a phase of training (Polyak and Juditsky 1992; docs/method.md section 5).

With few examples the last values follow the last batches; their mean does so less, and costs an addition a step. It
knows a set's values after each step. It does not know what is trained, or why.
"""

import torch

from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel


class IterateMean:
    """Watches one phase and never ends it."""

    def __init__(self, model: TapModel, parameter_set: ParameterSet) -> None:
        self._parameters = model.trainable(parameter_set)
        self._sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in self._parameters.items()}
        self._steps = 0

    @torch.no_grad()
    def __call__(self, step: int) -> bool:
        """``step``: how many are done."""
        for name, value in self._parameters.items():
            self._sums[name].add_(value)
        self._steps += 1
        return False

    @torch.no_grad()
    def restore(self) -> None:
        """Give the set the mean of its values after each step."""
        for name, value in self._parameters.items() if self._steps else ():
            value.copy_(self._sums[name] / self._steps)
