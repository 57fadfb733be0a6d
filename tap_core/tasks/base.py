"""What a task kind is: the data of its tasks, the decoder, the losses, the metrics, and the answer for an application.

A kind's class is importable without torch, because the coordinator checks settings with it and applications predict
with it; the three methods that need torch (`head`, `loss`, `divergence`) import it themselves. A kind knows one task at
a time. It does not know models, files or rounds.

Shapes: n examples of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tap_core.components import Modality
from tap_core.examples import Example
from tap_core.tasks.metrics import Metric

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tap_core.foundations.preprocessor import Preprocessor
    from tap_core.settings.federation import EvaluationConfig, TaskConfig
    from tap_core.tasks.decoders import HeadSizes

Facts = Mapping[str, float]
"""What a kind learnt from a device's train split (`fit`); it goes into the export's task.json."""


class TaskKind(ABC):
    """One kind of task. The class attributes are its facts."""

    name: ClassVar[str]
    words: ClassVar[str]
    """The name as people read it."""

    needs: ClassVar[tuple[Modality, ...]] = ()
    """Modalities that must be among a task's inputs."""

    classes: ClassVar[bool] = False
    """Whether its tasks name ``classes``."""

    target: ClassVar[Literal["text", "image"]] = "text"
    """How a target is read from users' data: a cell of text (or numbers, or a list), given to `parse`; or an image."""

    may_be_empty: ClassVar[bool] = False
    """Whether an empty cell is a target."""

    folder: ClassVar[bool] = False
    """Whether an image folder, whose sub-folders are classes, can be its data."""

    generates_text: ClassVar[bool] = False
    """Whether its decoder writes word by word: the export then is an encoder and a step, with the loop outside."""

    output: ClassVar[str] = "output"
    """What the exported graph calls the decoder's output."""

    margin: ClassVar[float] = 0.01
    """Default of `tap.margins` (docs/method.md section 6)."""

    beta: ClassVar[float] = 0.5
    """Default of `distillation.beta`: measured, see docs/results.md."""

    loss_unit: ClassVar[str] = "nats per example"

    metrics: ClassVar[tuple[Metric, ...]]
    """The first is the one that results show."""

    @property
    def files(self) -> tuple[str, ...]:
        """The ONNX files of an export."""
        return ("encoder.onnx", "step.onnx") if self.generates_text else ("model.onnx",)

    def check(self, task: "TaskConfig") -> None:
        """Raise ValueError, in one line, if a task's settings do not fit the kind."""
        if self.classes and len(task.classes) < 2:
            raise ValueError(f"a {self.name} task needs 'classes' with two names or more")
        if not self.classes and task.classes:
            raise ValueError(f"a {self.name} task takes no 'classes'")
        for modality in self.needs:
            if modality not in task.inputs:
                raise ValueError(f"a {self.name} task needs {modality!r} among its 'inputs'")

    # --- data

    def parse(self, cell: Any, task: "TaskConfig") -> Any:
        """A target from a cell of the user's data. Raises ValueError with what is wrong, in one line."""
        return str(cell)

    def fit(self, task: "TaskConfig", targets: Sequence[Any]) -> Facts:
        """Facts about the train split's targets that later steps need; most kinds need none."""
        return {}

    @abstractmethod
    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """The targets of some examples as one array (n, ...), for `loss`."""

    # --- training (torch)

    @abstractmethod
    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        """The task's decoder: called with `tap_core.tasks.decoders.Tokens`, it returns the output (n, ...)."""

    @abstractmethod
    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """The training loss of each example, float32 (n,): a mean within the example, so that neither a batch's size
        nor a task's share of it enters (docs/method.md section 8, trap 10)."""

    @abstractmethod
    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        """T^2 KL(teacher || student) of each example, float32 (n,), or what stands in for it (docs/method.md section
        5)."""

    # --- answers

    @abstractmethod
    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        """What the decoder's output (n, ...) says, in the form of `wanted`."""

    def wanted(self, target: Any, preprocessor: "Preprocessor") -> Any:
        """The right answer of an example with this target, in the form that the metrics compare."""
        return target

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        """Answers to ``test`` that need no model, by name; ``train``: right answers of the train split. The best of
        them is the task's floor (docs/method.md section 11)."""
        return {}

    def more_metrics(self, settings: "EvaluationConfig") -> tuple[Metric, ...]:
        """Metrics beside `metrics`, which a federation's settings ask for. Raises UsageError if one cannot be had."""
        return ()

    def shown(self, answer: Any, task: "TaskConfig") -> Any:
        """An answer as plain text, or as an image in `wanted`'s form."""
        return str(answer)

    # --- applications

    def predict(self, output: np.ndarray, task: Any) -> dict[str, Any]:
        """The facts about one answer, ready for JSON, from the exported graph's output of one example (...).

        ``task``: `edge_client.exported.ExportedTask`, which has ``classes`` and ``facts``. A kind whose answer is an
        image returns it as ``pixels``, normalised (3, height, width).
        """
        raise NotImplementedError

    def line(self, facts: Mapping[str, Any]) -> str:
        """A prediction as a person reads it, from the facts of `predict`."""
        return "\n".join(f"{key}: {value}" for key, value in facts.items() if key not in ("task", "kind"))
