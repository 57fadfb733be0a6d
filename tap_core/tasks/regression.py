"""Regression: one number, standardised on the device's train split."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_core.errors import quoted
from tap_core.examples import Example
from tap_core.tasks.base import Facts, TaskKind
from tap_core.tasks.metrics import MAE, R_SQUARED, rounding

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tap_core.foundations.preprocessor import Preprocessor
    from tap_core.settings.federation import TaskConfig
    from tap_core.tasks.decoders import HeadSizes

LARGEST = 1e100
"""Of numbers beyond it, sums of squares could overflow."""


class Regression(TaskKind):
    """The decoder's output is the number less the train split's mean, by its standard deviation: each device's own."""

    name = "regression"
    words = "regression"
    output = "value"
    beta = 0.1
    metrics = (R_SQUARED, MAE)
    loss_unit = "squared error, standardised"

    def parse(self, cell: Any, task: "TaskConfig") -> float:
        try:
            number = math.nan if "_" in str(cell) else float(cell)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{quoted(cell)} is not a finite number, which task {task.name!r} needs; write one with a decimal "
                "point, as in 1234.5, or remove the row"
            )
        if abs(number) > LARGEST:
            raise ValueError(
                f"{quoted(cell)} is beyond {LARGEST:g}, the most that task {task.name!r} takes; use a larger unit"
            )
        return number

    def fit(self, task: "TaskConfig", targets: Sequence[Any]) -> Facts:
        numbers = np.asarray(targets, np.float64)
        spread = float(numbers.std())
        return {"mean": float(numbers.mean()), "std": spread if spread > rounding(numbers) else 1.0}

    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """float32 (n,), standardised."""
        return np.array([(e.target - facts["mean"]) / facts["std"] for e in examples], np.float32)

    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        from tap_core.tasks.decoders import PooledHead

        return PooledHead(sizes.hidden, sizes.classifier_width, 1)

    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """Squared error of standardised numbers: (n, 1) and (n,)."""
        return (output.float()[:, 0] - target).square()

    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        """There are no classes: the squared difference of the outputs, without T."""
        return (student.float() - teacher.float())[:, 0].square()

    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        numbers: list[Any] = (output[:, 0].astype(np.float64) * facts["std"] + facts["mean"]).tolist()
        return numbers

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        return {"mean": [float(np.mean(train))] * len(test), "median": [float(np.median(train))] * len(test)}

    def shown(self, answer: Any, task: "TaskConfig") -> str:
        return f"{answer:.4g}"

    def predict(self, output: np.ndarray, task: Any) -> dict[str, Any]:
        """``value``, in the units of the training data."""
        return {"value": float(output[0]) * task.facts["std"] + task.facts["mean"]}

    def line(self, facts: Mapping[str, Any]) -> str:
        return f"{facts['value']:.6g}"
