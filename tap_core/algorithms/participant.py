"""One device in a federation: it takes part in rounds with its algorithm, and measures what came of it.

The simulator and the device's agent both drive this class; they differ in who carries the tensors. It holds no state
between calls: a device's state goes in and comes out, so that a caller can make it durable. It does not know files,
sockets or other devices.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from tap_core.algorithms import ALGORITHMS
from tap_core.algorithms.base import DeviceState, Local, on_wire
from tap_core.cohorts import own_values
from tap_core.components import examples_per_component
from tap_core.examples import Example, TaskData
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel, Tensors
from tap_core.names import ComponentName, DeviceName, TaskName
from tap_core.settings.federation import FederationConfig, TaskConfig
from tap_core.settings.runtime import Runtime
from tap_core.tasks import task_kind
from tap_core.training.evaluation import Score, data_uri, evaluate, floor, nearest, samples, shown
from tap_core.training.progress import OnProgress
from tap_core.training.resources import Resources
from tap_core.training.runtime import make_accelerator

SAMPLES = 6
"""Test examples per task whose outputs are kept to look at."""


@dataclass(frozen=True)
class LocalUpdate:
    """What a device uploads: its federated components in the wire's dtype and n_{i,r} for each of them."""

    round: int
    examples: dict[ComponentName, int]
    components: Tensors


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round, for the device's own eyes: losses are mean training losses per example by task."""

    round: int
    federated_loss: dict[TaskName, float]
    personal_loss: dict[TaskName, float]
    replaced: dict[TaskName, bool]
    replaced_components: tuple[ComponentName, ...]
    seconds: float


@dataclass(frozen=True)
class RoundOutcome:
    state: DeviceState
    update: LocalUpdate
    report: RoundReport


@dataclass(frozen=True)
class TaskResult:
    """A task's main metric on the device's test split: the best trivial answer (named), the global model, and x_i
    before and after stage 2. ``intervals``: of 95 %, by bootstrap over the test examples. ``metrics``: every metric of
    the kind, by name, with the same four values."""

    kind: str
    metric: str
    higher_is_better: bool
    n_test: int
    floor: float
    federated: float
    stage1: float
    personal: float
    floor_answer: str = ""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishOutcome:
    state: DeviceState
    results: dict[TaskName, TaskResult]
    samples: dict[TaskName, list[dict[str, Any]]] = field(default_factory=dict)
    """By task: input (text, or image as a data URI, or both), target, federated and personal output."""


class Participant:
    """A device's model, data and machine."""

    def __init__(
        self,
        config: FederationConfig,
        device: DeviceName,
        model: TapModel,
        data: Mapping[TaskName, TaskData],
        runtime: Runtime | None = None,
        private: Path | None = None,
    ) -> None:
        """Bring a device's parts together; what the tasks' kinds learn from training targets is learnt here.

        Args:
            config: The federation's settings.
            device: The device's name.
            model: A model built for exactly the tasks that ``data`` names.
            data: The device's examples by task.
            runtime: The machine's settings; None for the defaults.
            private: A directory for what training keeps on disk while this process lives; None for the system's own.

        Raises:
            ValueError: The model has other tasks than the data.
        """
        if set(model.tasks) != set(data):
            raise ValueError(f"the model has tasks {sorted(model.tasks)} and the data {sorted(data)}")
        self.config, self.device, self.model, self.data = config, device, model, data
        self.runtime = Runtime() if runtime is None else runtime
        self.resources = Resources(self.runtime, private)
        self.tasks = config.tasks_named(data)
        self.algorithm = ALGORITHMS.named(config.algorithm)(config)
        for task in self.tasks:
            model.preprocessor.fit(task, data[task.name].train)

    @property
    def examples(self) -> dict[TaskName, int]:
        """n_{i,o}, training examples by task."""
        return {name: len(self.data[name].train) for name in sorted(self.data)}

    def initial_state(self) -> DeviceState:
        """The state before the first participation."""
        return self.algorithm.init(tuple(self.data))

    def take_part(
        self,
        round_number: int,
        received: Tensors,
        state: DeviceState,
        on_progress: OnProgress | None = None,
        *,
        home: Mapping[ComponentName, int] | None = None,
    ) -> RoundOutcome:
        """Steps 1 to 5 of a round of stage 1.

        Args:
            round_number: Which round, from 0.
            received: The global value of each owned component.
            state: What the device kept from its last participation.
            on_progress: Told of each step of training.
            home: The owned components that stay at home, each with the version that the coordinator has of it. They are
                not in the update, and start from the device's own value where `own_values` says so.

        Returns:
            The state to keep, the update to send, and what happened.

        Raises:
            ValueError: ``received`` is not exactly the owned components.
            Diverged: Training left the finite numbers; ``state`` is still good.
        """
        home = {} if home is None else home
        began = time.monotonic()
        local = self._local(on_progress)
        self.model.load("federated", starting_values(received, state, home))  # step 1
        part = self.algorithm.take_part(local, round_number, state)  # steps 2 to 4
        # 5: of the federated set what others share goes out, and nothing else
        wire = on_wire(part.trained, self.config.wire.dtype)
        examples = examples_per_component(self.tasks, self.examples)
        sent = [name for name in wire if name not in home]
        update = LocalUpdate(round_number, {name: examples[name] for name in sent}, {name: wire[name] for name in sent})
        kept = {name: wire[name] for name in sorted(home)}
        after = DeviceState(round_number, part.personal, part.federated_loss, part.personal_loss, home=kept)
        report = RoundReport(
            round_number,
            part.federated_loss,
            part.personal_loss,
            part.replaced,
            part.replaced_components,
            time.monotonic() - began,
        )
        return RoundOutcome(after, update, report)

    def finish(
        self,
        received: Tensors,
        state: DeviceState,
        on_progress: OnProgress | None = None,
        *,
        distilling: bool = True,
        home: Mapping[ComponentName, int] | None = None,
    ) -> FinishOutcome:
        """Stage 2 and the measurements on the test split.

        Args:
            received: The final global components. A device that was never sampled starts from them.
            state: What the device kept from its last participation.
            on_progress: Told of each step of training.
            distilling: Whether stage 2 takes place; else the personal set stays that of stage 1.
            home: As in `take_part`; the final value of a component at home is the device's own.

        Returns:
            The state to keep, the results by task, and outputs to look at.

        Raises:
            Diverged: Stage 2 left the finite numbers; ``state`` is still good.
        """
        local = self._local(on_progress)
        accelerator = local.accelerator
        final = starting_values(received, state, {} if home is None else home)
        self.model.load("federated", final)
        self.model.load("personal", state.personal or final)
        measured = [task for task in self.tasks if self.data[task.name].test]

        settings = self.config.evaluation

        def scores(parameter_set: ParameterSet) -> dict[TaskName, Score]:
            return {
                t.name: evaluate(self.model, parameter_set, t, self.data[t.name].test, accelerator, settings)
                for t in measured
            }

        chosen = {task.name: _spread(self.data[task.name].test, SAMPLES) for task in measured}

        def outputs(parameter_set: ParameterSet) -> dict[TaskName, list[str]]:
            return {t.name: samples(self.model, parameter_set, t, chosen[t.name], accelerator) for t in measured}

        federated, federated_outputs, stage1 = scores("federated"), outputs("federated"), scores("personal")
        if distilling:
            self.algorithm.finish(local, state)
        personal, personal_outputs = scores("personal"), outputs("personal")
        results = {
            task.name: self._result(
                task,
                {"federated": federated[task.name], "stage1": stage1[task.name], "personal": personal[task.name]},
                accelerator,
            )
            for task in measured
        }
        rows = {
            task.name: [
                {**self._shown_example(task, example), "federated": f, "personal": p}
                for example, f, p in zip(
                    chosen[task.name], federated_outputs[task.name], personal_outputs[task.name], strict=True
                )
            ]
            for task in measured
        }
        after = replace(state, personal=self.model.state("personal"), finished=True)
        return FinishOutcome(after, results, rows)

    def _result(self, task: TaskConfig, scores: Mapping[str, Score], accelerator: Accelerator) -> TaskResult:
        data, main = self.data[task.name], task_kind(task.kind).metrics[0]
        kind = task_kind(task.kind)
        neighbours = nearest(self.model, task, data, accelerator) if kind.generates_text else None
        answer, constant = floor(self.model.preprocessor, task, data, self.config.evaluation, neighbours)
        every = {"floor": constant, **scores}
        return TaskResult(
            task.kind,
            main.name,
            main.higher_is_better,
            n_test=len(data.test),
            **{name: score.main for name, score in every.items()},
            floor_answer=answer,
            intervals={name: score.interval for name, score in every.items()},
            metrics={
                metric: {name: score.values[metric] for name, score in every.items()} for metric in constant.values
            },
        )

    def _shown_example(self, task: TaskConfig, example: Example) -> dict[str, Any]:
        preprocessor, target = self.model.preprocessor, example.target
        inputs = {"image": None if example.image is None else data_uri(example.image), "text": example.text}
        return {
            "input": {key: value for key, value in inputs.items() if value is not None},
            "target": data_uri(target) if isinstance(target, np.ndarray) else shown(preprocessor, task, target),
        }

    def _local(self, on_progress: OnProgress | None) -> Local:
        accelerator = make_accelerator(self.runtime, self.config.training.accumulation)
        self.model.to(accelerator.device)
        return Local(self.config, self.device, self.model, self.data, accelerator, on_progress, self.resources)


def starting_values(received: Tensors, state: DeviceState, home: Mapping[ComponentName, int]) -> Tensors:
    """What w_i starts from: of components at home the device's own value where it counts, of others what came."""
    return {**received, **{name: state.home[name] for name in own_values(home, state.home, state.round)}}


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most ``count`` examples, evenly spaced: files often come sorted by class."""
    count = min(count, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]
