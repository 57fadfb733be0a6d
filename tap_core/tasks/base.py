"""What a task kind is: the data of its tasks, the decoder, the losses, the metrics, and the answer for an application.

A kind's class is importable without torch, because the coordinator checks settings with it and applications predict
with it; the four methods that need torch (`head`, `loss`, `divergence`, `uncertainty`) import it themselves. A kind
knows one task at a time. It does not know models, files or rounds.

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
    """Whether an empty cell is a target; a row without the cell is none in any case."""

    folder: ClassVar[bool] = False
    """Whether an image folder, whose sub-folders are classes, can be its data."""

    generates_text: ClassVar[bool] = False
    """Whether its decoder writes word by word: the export then is an encoder and a step, with the loop outside."""

    output: ClassVar[str] = "output"
    """What the exported graph calls the decoder's output."""

    margin: ClassVar[float] = 0.01
    """Default of `algorithm.margins` (docs/method.md section 6)."""

    beta: ClassVar[float] = 0.5
    """Default of `algorithm.distillation.beta`: measured, see docs/results.md."""

    loss_unit: ClassVar[str] = "nats per example"

    metrics: ClassVar[tuple[Metric, ...]]
    """The first is the one that results show."""

    @property
    def files(self) -> tuple[str, ...]:
        """The ONNX files of an export."""
        return ("encoder.onnx", "step.onnx") if self.generates_text else ("model.onnx",)

    def check(self, task: "TaskConfig") -> None:
        """Check that a task's settings fit the kind.

        Args:
            task: The settings of one task.

        Raises:
            ValueError: They do not; one line that says why.
        """
        if self.classes and len(task.classes) < 2:
            raise ValueError(f"a {self.name} task needs 'classes' with two names or more")
        if not self.classes and task.classes:
            raise ValueError(f"a {self.name} task takes no 'classes'")
        for modality in self.needs:
            if modality not in task.inputs:
                raise ValueError(f"a {self.name} task needs {modality!r} among its 'inputs'")

    # --- data

    def parse(self, cell: Any, task: "TaskConfig") -> Any:
        """A target from a cell of the user's data.

        Args:
            cell: Text, a number or a list, as the data hold it.
            task: The task that it is a target of.

        Returns:
            What `tap_core.examples.Example.target` then holds.

        Raises:
            ValueError: The cell is no target of this task; one line that says why.
        """
        if isinstance(cell, list):
            raise ValueError(
                f"the target of task {task.name!r} is a list of {len(cell)}, not a text; give a row to each"
            )
        return str(cell)

    def fit(self, task: "TaskConfig", targets: Sequence[Any]) -> Facts:
        """Facts about the train split's targets that later steps need; most kinds need none.

        Args:
            task: The task.
            targets: The targets of the device's training examples.

        Returns:
            The facts by name.
        """
        return {}

    @abstractmethod
    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """The targets of some examples as one array, for `loss`.

        Args:
            task: The task.
            examples: The n examples.
            preprocessor: The foundation's, for words and pixels.
            facts: What `fit` found.

        Returns:
            An array (n, ...).
        """

    # --- training (torch)

    @abstractmethod
    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        """The task's decoder.

        Args:
            task: The task.
            sizes: What the decoder's size depends on.

        Returns:
            A module: called with `tap_core.tasks.decoders.Tokens`, it returns the output (n, ...).
        """

    @abstractmethod
    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """The training loss of each example: a mean within the example, so that neither a batch's size nor a task's
        share of it enters (docs/method.md section 8, trap 10).

        Args:
            output: The decoder's output (n, ...).
            target: What `encode` made (n, ...).

        Returns:
            float32 (n,), in `loss_unit`.
        """

    @abstractmethod
    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        """T^2 KL(teacher || student) of each example, or what stands in for it (docs/method.md section 5).

        Args:
            student: The personal set's output (n, ...); it is differentiated.
            teacher: The federated set's output (n, ...).
            target: What `encode` made (n, ...).
            temperature: T.

        Returns:
            float32 (n,).
        """

    def uncertainty(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """The entropy of what is predicted; where a kind predicts no distribution, the loss stands in for it.

        Args:
            output: What the decoder put out (n, ...).
            target: What `encode` made (n, ...).

        Returns:
            Of each example, float32 (n,).
        """
        return self.loss(output, target)

    def error(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """How wrong an answer is, as the first metric counts; where the output of one example does not show it, the
        loss stands in for it.

        Args:
            output: What the decoder put out (n, ...).
            target: What `encode` made (n, ...).

        Returns:
            Of each example, float32 (n,).
        """
        return self.loss(output, target)

    # --- answers

    @abstractmethod
    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        """What the decoder's output says.

        Args:
            output: The output (n, ...).
            task: The task.
            facts: What `fit` found.

        Returns:
            n answers in the form of `wanted`.
        """

    def wanted(self, target: Any, preprocessor: "Preprocessor") -> Any:
        """The right answer of an example.

        Args:
            target: The example's target.
            preprocessor: The foundation's, for words and pixels.

        Returns:
            The answer in the form that the metrics compare.
        """
        return target

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        """Answers that need no model; the best of them is the task's floor (docs/method.md section 11).

        Args:
            task: The task.
            train: Right answers of the train split.
            test: The n examples of the test split.

        Returns:
            n answers each, by the name of the way they are made.
        """
        return {}

    def more_metrics(self, settings: "EvaluationConfig") -> tuple[Metric, ...]:
        """Metrics beside `metrics` that a federation's settings ask for.

        Args:
            settings: The federation's ``evaluation``.

        Returns:
            The metrics.

        Raises:
            UsageError: One cannot be had.
        """
        return ()

    def shown(self, answer: Any, task: "TaskConfig") -> Any:
        """An answer to look at.

        Args:
            answer: An answer in the form of `wanted`.
            task: The task.

        Returns:
            Plain text, or an image in `wanted`'s form.
        """
        return str(answer)

    # --- applications

    def predict(self, output: np.ndarray, task: Any) -> dict[str, Any]:
        """The facts about one answer, for an application.

        Args:
            output: The exported graph's output of one example (...).
            task: `edge_client.exported.ExportedTask`, which has ``classes`` and ``facts``.

        Returns:
            Values that are ready for JSON. A kind whose answer is an image returns it as ``pixels``, normalised (3,
            height, width).
        """
        raise NotImplementedError

    def line(self, facts: Mapping[str, Any]) -> str:
        """A prediction as a person reads it.

        Args:
            facts: What `predict` returned.

        Returns:
            One line or a few.
        """
        return "\n".join(f"{key}: {value}" for key, value in facts.items() if key not in ("task", "kind"))
