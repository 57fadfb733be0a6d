"""What both kinds of classification with one right class share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_core.errors import did_you_mean, quoted
from tap_core.examples import Example
from tap_core.tasks.base import Facts, TaskKind
from tap_core.tasks.metrics import ACCURACY

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tap_core.foundations.preprocessor import Preprocessor
    from tap_core.settings.federation import TaskConfig
    from tap_core.tasks.decoders import HeadSizes


class Classification(TaskKind):
    """One class of several: cross-entropy, accuracy. A target is the index of a class."""

    classes = True
    output = "logits"
    metrics = (ACCURACY,)

    def parse(self, cell: Any, task: "TaskConfig") -> int:
        if isinstance(cell, list):
            raise ValueError(
                f"the target of task {task.name!r} is a list of {len(cell)}, and a row has one class; name it alone, "
                "or ask the operator for a task of kind 'multilabel', which takes lists"
            )
        return class_index(str(cell), task)

    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """Class indices, int64 (n,)."""
        return np.array([int(e.target) for e in examples], np.int64)

    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        from tap_core.tasks.decoders import PooledHead

        return PooledHead(sizes.hidden, sizes.classifier_width, len(task.classes))

    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """Cross-entropy: logits (n, classes) and class indices (n,)."""
        from torch.nn import functional as F

        return F.cross_entropy(output.float(), target, reduction="none")

    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        from tap_core.tasks.losses import kl_divergence

        return kl_divergence(student, teacher, temperature)

    def error(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """1 for a wrong class, 0 for the right one."""
        return (output.argmax(dim=1) != target).float()

    def uncertainty(self, output: "Tensor", target: "Tensor") -> "Tensor":
        from tap_core.tasks.losses import entropy

        return entropy(output)

    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        indices: list[Any] = output.argmax(axis=-1).tolist()
        return indices

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        commonest = Counter(train).most_common(1)[0][0]
        return {"majority class": [commonest] * len(test)}

    def shown(self, answer: Any, task: "TaskConfig") -> str:
        name: str = task.classes[answer]
        return name

    def predict(self, output: np.ndarray, task: Any) -> dict[str, Any]:
        """``label``, ``probability`` and ``probabilities`` (by class, likeliest first)."""
        logits = output.astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        probabilities = {task.classes[i]: float(shares[i]) for i in order}
        label = next(iter(probabilities))
        return {"label": label, "probability": probabilities[label], "probabilities": probabilities}

    def line(self, facts: Mapping[str, Any]) -> str:
        return "\n".join(f"{share:6.1%}  {label}" for label, share in list(facts["probabilities"].items())[:5])


def class_index(name: str, task: "TaskConfig") -> int:
    """The place of a class among the task's classes. Raises ValueError with the nearest class."""
    if name not in task.classes:
        hint = f"{did_you_mean(name, task.classes)} its classes are {', '.join(task.classes)}".lstrip()
        raise ValueError(f"class {quoted(name)} is not a class of task {task.name!r}; {hint}")
    return task.classes.index(name)
