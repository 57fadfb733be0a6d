"""Multilabel classification: any number of the classes, each decided by itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_core.errors import quoted
from tap_core.examples import Example
from tap_core.tasks.base import Facts, TaskKind
from tap_core.tasks.classification import class_index
from tap_core.tasks.metrics import MACRO_F1

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tap_core.foundations.preprocessor import Preprocessor
    from tap_core.settings.federation import TaskConfig
    from tap_core.tasks.decoders import HeadSizes

SEPARATOR = ";"
"""Between the classes of a cell, where the data have no lists."""


class Multilabel(TaskKind):
    """A target is the sorted indices of its classes, none included. A class is answered where its logit is positive."""

    name = "multilabel"
    words = "multilabel classification"
    classes = True
    may_be_empty = True
    output = "logits"
    margin = 0.005
    metrics = (MACRO_F1,)
    loss_unit = "nats per class"

    def check(self, task: "TaskConfig") -> None:
        super().check(task)
        for name in task.classes:
            if not name.strip() or name != name.strip() or SEPARATOR in name:
                raise ValueError(
                    f"no cell can name the class {name!r}: {SEPARATOR!r} stands between classes, and spaces around "
                    "them are left out; rename it"
                )

    def parse(self, cell: Any, task: "TaskConfig") -> tuple[int, ...]:
        """A list of class names, or names with ";" between them."""
        names = cell if isinstance(cell, (list, tuple)) else str(cell).split(SEPARATOR)
        if not all(isinstance(name, (str, int, float)) for name in names):
            raise ValueError(
                f"{quoted(cell)} is no list of names of classes, which task {task.name!r} needs; write one"
            )
        stripped = [str(name).strip() for name in names]
        return tuple(sorted({_index(name, task) for name in stripped if name}))

    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """float32 (n, classes): 1 for the example's classes, 0 for the others."""
        array = np.zeros((len(examples), len(task.classes)), np.float32)
        for row, example in zip(array, examples, strict=True):
            row[list(example.target)] = 1
        return array

    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        from tap_core.tasks.decoders import PooledHead

        return PooledHead(sizes.hidden, sizes.classifier_width, len(task.classes))

    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """Binary cross-entropy, mean over the classes: logits and targets (n, classes)."""
        from torch.nn import functional as F

        return F.binary_cross_entropy_with_logits(output.float(), target, reduction="none").mean(dim=-1)

    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        """KL between the two outcomes of each class, mean over the classes."""
        from tap_core.tasks.losses import kl_divergence

        return kl_divergence(_outcomes(student), _outcomes(teacher), temperature).mean(dim=-1)

    def uncertainty(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """The mean over the classes."""
        from tap_core.tasks.losses import entropy

        return entropy(_outcomes(output)).mean(dim=-1)

    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        return [tuple(np.flatnonzero(row > 0).tolist()) for row in output]

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        counts = Counter(index for target in train for index in target)
        often = tuple(sorted(index for index, count in counts.items() if 2 * count > len(train)))
        commonest = Counter(train).most_common(1)[0][0]
        every = tuple(range(len(task.classes)))
        choices = {"classes of more than half": often, "commonest set": commonest, "every class": every}
        return {name: [answer] * len(test) for name, answer in choices.items()}

    def shown(self, answer: Any, task: "TaskConfig") -> str:
        return f"{SEPARATOR} ".join(task.classes[index] for index in answer) or "(none)"

    def predict(self, output: np.ndarray, task: Any) -> dict[str, Any]:
        """``labels`` and ``probabilities`` (by class, likeliest first)."""
        shares = 1 / (1 + np.exp(-output.astype(np.float64)))
        order = np.argsort(-shares, kind="stable")
        labels = [task.classes[i] for i in order if output[i] > 0]
        return {"labels": labels, "probabilities": {task.classes[i]: float(shares[i]) for i in order}}

    def line(self, facts: Mapping[str, Any]) -> str:
        marked = {label: "*" for label in facts["labels"]}
        shares = facts["probabilities"].items()
        return "\n".join(f"{share:6.1%} {marked.get(label, ' ')} {label}" for label, share in shares)


def _index(name: str, task: "TaskConfig") -> int:
    try:
        return class_index(name, task)
    except ValueError as error:
        hint = f"; between classes stands {SEPARATOR!r}, not ','" if "," in name else ""
        raise ValueError(f"{error}{hint}") from None


def _outcomes(logits: "Tensor") -> "Tensor":
    """(n, classes) to (n, classes, 2): yes and no."""
    import torch

    return torch.stack([logits, torch.zeros_like(logits)], dim=-1)
