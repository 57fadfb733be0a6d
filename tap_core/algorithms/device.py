"""One device as an algorithm sees it: its model, examples and machine, and what it can do with them.

It trains one of the two parameter sets for a phase, and scores a set on the examples that are never trained on. It does
not know rounds, replacement or where parameters go.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from tap_core.algorithms.base import Tensors
from tap_core.errors import Diverged
from tap_core.examples import Example, TaskData
from tap_core.model.adapters import PARAMETER_SETS, ParameterSet
from tap_core.model.tap_model import TapModel
from tap_core.names import DeviceName, TaskName
from tap_core.seeds import derive_seed
from tap_core.settings.federation import FederationConfig, TaskConfig
from tap_core.tasks.batch import TaskBatch
from tap_core.training.averaging import IterateMean
from tap_core.training.loop import Extra, Pull, TrainingPhase, train
from tap_core.training.patience import Patience
from tap_core.training.progress import OnProgress
from tap_core.training.resources import Resources
from tap_core.triggers.base import ExampleIndicator
from tap_core.triggers.loss import Loss

BATCH = 64
"""Held-out examples that are scored at a time."""


@dataclass(frozen=True)
class Local:
    """One device: who it is, its model, its examples and its machine. ``data``: examples by task, sorted by name."""

    config: FederationConfig
    device: DeviceName
    model: TapModel
    data: Mapping[TaskName, TaskData]
    accelerator: Accelerator
    on_progress: OnProgress | None = None
    resources: Resources | None = None

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        return self.config.tasks_named(self.data)

    @property
    def train_examples(self) -> dict[TaskName, Sequence[Example]]:
        return {name: self.data[name].train for name in sorted(self.data)}

    def version_0(self) -> Tensors:
        """The values that every component starts from. The model's sets are left as they are.

        Returns:
            Version 0 of each owned component.
        """
        held = {name: self.model.state(name) for name in PARAMETER_SETS}
        self.model.initialise(self.config.seed)
        first = self.model.state("personal")
        for name, values in held.items():
            self.model.load(name, values)
        return first

    def train(
        self,
        parameter_set: ParameterSet,
        phase: str,
        *when: str | int,
        steps: int,
        learning_rate: float,
        extra: Extra | None = None,
        pull: Pull | None = None,
        patience: int = 0,
        average: bool = False,
        only: Callable[[str], bool] | None = None,
    ) -> dict[TaskName, float]:
        """One phase of training of one set.

        Args:
            parameter_set: The set that is trained; the other one stays as it is.
            phase: The phase's name, for the seed and for those who watch.
            when: The round's number, or the stage. Batches are drawn with a seed of the federation's, the device,
                ``when`` and the phase's name.
            steps: Optimizer steps.
            learning_rate: AdamW's.
            extra: A further loss per example, from a batch and its output.
            pull: What draws the set towards other values.
            patience: Steps that may bring nothing on the decision sets before the phase ends, with the values that were
                best there; 0 for all steps.
            average: Whether the set ends with the mean of its values after each step that was done.
            only: Which of a component's tensors are trained, by name; all if it is None.

        Returns:
            The mean training loss per example by task, without ``extra``.

        Raises:
            Diverged: A loss left the finite numbers, or a parameter has at the phase's end; the set is then of no use.
        """
        seed = derive_seed(self.config.seed, self.device, *when, phase)
        watches: list[Patience | IterateMean] = []
        if patience:
            watches.append(Patience(self.relative_loss(parameter_set), self.model, parameter_set, patience, steps))
        if average:
            watches.append(IterateMean(self.model, parameter_set))
        losses = train(
            self.model,
            parameter_set,
            self.train_examples,
            self.config.training,
            TrainingPhase(phase, seed, steps, learning_rate),
            self.accelerator,
            extra=extra,
            pull=pull,
            only=only,
            watch=(lambda step: any([watch(step) for watch in watches])) if watches else None,
            on_progress=self.on_progress,
            resources=self.resources,
        )
        for watch in watches[-1:]:  # the mean, if it is asked for
            watch.restore()
        for name, value in self.model.trainable(parameter_set).items():
            if not torch.isfinite(value).all():  # the last step's: no loss was computed with them
                raise Diverged(f"training diverged in {phase} ({name} is not finite); lower the learning rate")
        return losses

    def pull(self, strength: float, towards: Tensors) -> Pull:
        """What draws a set towards these values, with strength / 2 times the squared distance.

        Args:
            strength: How strongly.
            towards: The values, of each owned component.

        Returns:
            The argument of `train`.
        """
        flat = {f"{c}:{n}": torch.from_numpy(v) for c, group in towards.items() for n, v in group.items()}
        return Pull(strength, {name: value.float().to(self.accelerator.device) for name, value in flat.items()})

    def scores(self, indicator: ExampleIndicator, parameter_set: ParameterSet, task: TaskConfig) -> np.ndarray:
        """Score the task's decision set.

        Args:
            indicator: What scores.
            parameter_set: The set that is scored.
            task: The task.

        Returns:
            Of each example, float64 (n,).
        """
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            found = indicator.of_all(self.model, parameter_set, self.held_out(task, BATCH))
        return np.asarray(found.double().cpu().numpy())

    def losses(self, parameter_set: ParameterSet, task: TaskConfig) -> np.ndarray:
        """The losses of the task's decision set.

        Args:
            parameter_set: The set that is scored.
            task: The task.

        Returns:
            Of each example, float64 (n,).
        """
        return self.scores(Loss(), parameter_set, task)

    def held_out(self, task: TaskConfig, size: int) -> Iterator[TaskBatch]:
        """The task's decision set in batches, with what the untrained layers make of it, computed once.

        Args:
            task: The task.
            size: Examples in each batch but the last.

        Returns:
            The batches, on the device.
        """
        examples, trained = self.data[task.name].decision, len(self.data[task.name].train)
        for start in range(0, len(examples), size):
            numbers = range(start, min(start + size, len(examples)))
            rows = self.model.preprocessor.batch(task, [examples[i] for i in numbers]).to(self.accelerator.device)
            if self.resources is not None:  # their numbers there follow those of the training examples
                rows = self.resources.prefixes.complete(self.model, rows, [trained + i for i in numbers])
            yield rows

    def relative_loss(self, parameter_set: ParameterSet, tasks: Sequence[TaskConfig] = ()) -> "RelativeLoss":
        """How a set's decision losses compare with those of the values that it holds now.

        Args:
            parameter_set: The set.
            tasks: Of which tasks; none for all.

        Returns:
            A function without arguments that says it of the values that the set then holds.
        """
        return RelativeLoss(self, parameter_set, tasks or self.tasks)


class RelativeLoss:
    """The mean over tasks of the mean decision loss, each as a share of what it was when this was made: tasks differ in
    the scale of their losses."""

    def __init__(self, local: Local, parameter_set: ParameterSet, tasks: Sequence[TaskConfig]) -> None:
        self._local, self._set = local, parameter_set
        self._at_first = {task: float(local.losses(parameter_set, task).mean()) for task in tasks}

    def __call__(self) -> float:
        now = {task: float(self._local.losses(self._set, task).mean()) for task in self._at_first}
        return float(np.mean([loss / max(self._at_first[task], 1e-12) for task, loss in now.items()]))
