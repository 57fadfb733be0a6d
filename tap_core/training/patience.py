"""When a phase of training has gone on long enough: held-out examples get no better (docs/method.md section 5, step 3).

It knows a score of the set that is trained, and its values. It does not know what is scored, or how.
"""

from collections.abc import Callable

from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel

EVERY = 5
"""Steps from one look at the held-out examples to the next."""


class Patience:
    """Watches one phase: true once ``patience`` steps have not lowered the score. It keeps the best values seen, those
    before the first step included."""

    def __init__(
        self, score: Callable[[], float], model: TapModel, parameter_set: ParameterSet, patience: int, steps: int
    ) -> None:
        self._score, self._model, self._set = score, model, parameter_set
        self._patience, self._steps = patience, steps
        self._best, self._at, self._kept = score(), 0, model.state(parameter_set)

    def __call__(self, step: int) -> bool:
        """``step``: how many are done."""
        if step % EVERY and step != self._steps:
            return False
        now = self._score()
        if now < self._best:
            self._best, self._at, self._kept = now, step, self._model.state(self._set)
        return step - self._at >= self._patience

    def restore(self) -> None:
        """Give the set the best values."""
        self._model.load(self._set, self._kept)
