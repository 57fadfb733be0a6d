"""One device in a federation: it takes part in rounds with its algorithm, and measures what came of it.

The simulator and the device's agent both drive this class; they differ in who carries the tensors. It holds no state
between calls: a device's state goes in and comes out, so that a caller can make it durable. It does not know files,
sockets or other devices.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tap_core.algorithms import algorithm_of
from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, on_wire
from tap_core.algorithms.device import Local
from tap_core.algorithms.measurement import Measured, Measurement, TaskResult
from tap_core.cohorts import own_values
from tap_core.components import examples_per_component
from tap_core.errors import UsageError
from tap_core.examples import TaskData
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel, Tensors
from tap_core.names import ComponentName, DeviceName, TaskName
from tap_core.settings.federation import FederationConfig
from tap_core.settings.runtime import Runtime
from tap_core.tasks import task_kind
from tap_core.training.progress import OnProgress
from tap_core.training.resources import Resources
from tap_core.training.runtime import make_accelerator


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
    shares: dict[ComponentName, float] = field(default_factory=dict)
    """Of components that took over a part of the federated value: how much (soft replacement)."""


@dataclass(frozen=True)
class FederatedPart:
    """Steps 1 and 2 of a round, with what is sent of it and what stays at home: the same for every algorithm that
    follows the common trajectory."""

    round: int
    federated: Federated
    update: LocalUpdate
    home: Tensors
    seconds: float


@dataclass(frozen=True)
class RoundOutcome:
    state: DeviceState
    update: LocalUpdate
    report: RoundReport


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
            UsageError: A task has no examples to decide on, or a metric that the settings ask for cannot be had.
        """
        if set(model.tasks) != set(data):
            raise ValueError(f"the model has tasks {sorted(model.tasks)} and the data {sorted(data)}")
        self.config, self.device, self.model, self.data = config, device, model, data
        self.runtime = Runtime() if runtime is None else runtime
        self.resources = Resources(self.runtime, private)
        self.tasks = config.tasks_named(data)
        self.algorithm: Algorithm[Any] = algorithm_of(config)
        if bare := [name for name in sorted(data) if config.cuts_decision_set and not data[name].decision]:
            raise UsageError(
                f"algorithm {config.algorithm.name!r} decides on held-out examples; task {bare[0]!r} has none"
            )
        self.measurement = Measurement(model, data, config.evaluation)
        for task in self.tasks:
            model.preprocessor.fit(task, data[task.name].train)
            task_kind(task.kind).more_metrics(config.evaluation)  # whether they can be had is said before training

    @property
    def examples(self) -> dict[TaskName, int]:
        """n_{i,o}, training examples by task."""
        return {name: len(self.data[name].train) for name in sorted(self.data)}

    def initial_state(self) -> DeviceState:
        """The state before the first participation."""
        return DeviceState.initial(tuple(self.data))

    def with_algorithm(self, config: FederationConfig) -> "Participant":
        """The same device, model and data under another algorithm.

        Args:
            config: Settings that differ in the algorithm alone.

        Returns:
            A participant that shares this one's model: one of them can be at work at a time.
        """
        other = copy.copy(self)
        other.config, other.algorithm = config, algorithm_of(config)
        return other

    def take_part(
        self,
        round_number: int,
        received: Tensors,
        state: DeviceState,
        on_progress: OnProgress | None = None,
        *,
        home: Mapping[ComponentName, int] | None = None,
    ) -> RoundOutcome:
        """A round of stage 1: `federate`, then `personalize`.

        Args:
            round_number: Which round, from 0.
            received: The global value of each owned component.
            state: What the device kept from its last participation.
            on_progress: Told of each step of training.
            home: As in `federate`.

        Returns:
            The state to keep, the update to send, and what happened.

        Raises:
            ValueError: ``received`` is not exactly the owned components.
            Diverged: Training left the finite numbers; ``state`` is still good.
        """
        part = self.federate(round_number, received, state, on_progress, home=home)
        return self.personalize(part, state, on_progress)

    def federate(
        self,
        round_number: int,
        received: Tensors,
        state: DeviceState,
        on_progress: OnProgress | None = None,
        *,
        home: Mapping[ComponentName, int] | None = None,
    ) -> FederatedPart:
        """Steps 1, 2 and 5 of a round of stage 1.

        Args:
            round_number: Which round, from 0.
            received: The global value of each owned component.
            state: What the device kept from its last participation.
            on_progress: Told of each step of training.
            home: The owned components that stay at home, each with the version that the coordinator has of it. They are
                not in the update, and start from the device's own value where `own_values` says so. So do the tensors
                that the algorithm does not share.

        Returns:
            What came of it, with the update to send.

        Raises:
            ValueError: ``received`` is not exactly the owned components.
            Diverged: Training left the finite numbers; ``state`` is still good.
        """
        home = {} if home is None else home
        began = time.monotonic()
        shares = self.algorithm.is_shared
        self.model.load("federated", starting_values(received, state, home, shares))  # step 1
        federated = self.algorithm.federate(self._local(on_progress), round_number, state)  # step 2
        # 5: of the federated set what others share goes out, and nothing else
        wire = on_wire(federated.trained, self.config.wire.dtype)
        sent = {
            name: {key: value for key, value in group.items() if shares(name, key)}
            for name, group in wire.items()
            if name not in home
        }
        sent = {name: group for name, group in sent.items() if group or not wire[name]}
        kept = {
            name: {key: value for key, value in group.items() if key not in sent.get(name, {})}
            for name, group in sorted(wire.items())
        }
        examples = examples_per_component(self.tasks, self.examples)
        update = LocalUpdate(round_number, {name: examples[name] for name in sent}, sent)
        kept = {name: group for name, group in kept.items() if group or name in home}
        return FederatedPart(round_number, federated, update, kept, time.monotonic() - began)

    def personalize(
        self, part: FederatedPart, state: DeviceState, on_progress: OnProgress | None = None
    ) -> RoundOutcome:
        """Steps 3 and 4, along what `federate` came to.

        Args:
            part: What it came to, under this algorithm or another that follows the same trajectory.
            state: What the device kept from its last participation.
            on_progress: Told of each step of training.

        Returns:
            The state to keep, the update to send, and what happened.

        Raises:
            Diverged: Training left the finite numbers; ``state`` is still good.
        """
        began = time.monotonic()
        federated = part.federated
        self.model.load("federated", federated.trained)
        personal = self.algorithm.personalize(self._local(on_progress), part.round, state, federated)
        after = DeviceState(
            part.round, personal.tensors, federated.loss, personal.loss, home=part.home, rounds=state.rounds + 1
        )
        report = RoundReport(
            part.round,
            federated.loss,
            {task: loss for task, loss in personal.loss.items() if math.isfinite(loss)},
            personal.replaced,
            personal.replaced_components,
            part.seconds + time.monotonic() - began,
            personal.shares,
        )
        return RoundOutcome(after, part.update, report)

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
        final = starting_values(received, state, {} if home is None else home, self.algorithm.is_shared)
        self.model.load("federated", final)
        self.model.load("personal", state.personal or final)
        tasks = [task for task in self.tasks if self.data[task.name].test]

        def measure(parameter_set: ParameterSet) -> dict[TaskName, Measured]:
            return {task.name: self.measurement.of(parameter_set, task, local.accelerator) for task in tasks}

        federated, stage1 = measure("federated"), measure("personal")
        end = self._finished(local, state) if distilling else Final(self.model.state("personal"))
        after = replace(state, personal=end.personal, selected=end.selected, candidates=end.candidates, finished=True)
        results, rows = dict[TaskName, TaskResult](), dict[TaskName, list[dict[str, Any]]]()
        for task in tasks:
            self.model.load("personal", after.personal_for(task.name))
            sets = {
                "federated": federated[task.name],
                "stage1": stage1[task.name],
                "personal": self.measurement.of("personal", task, local.accelerator),
            }
            selected = end.selected.get(task.name, "")
            results[task.name] = self.measurement.result(task, sets, local.accelerator, selected)
            rows[task.name] = self.measurement.shown(task, sets)
        return FinishOutcome(after, results, rows)

    def _finished(self, local: Local, state: DeviceState) -> Final:
        """What the algorithm makes of the loaded sets at the end."""
        return self.algorithm.finish(local, state)

    def _local(self, on_progress: OnProgress | None) -> Local:
        accelerator = make_accelerator(self.runtime, self.config.training.accumulation)
        self.model.to(accelerator.device)
        return Local(self.config, self.device, self.model, self.data, accelerator, on_progress, self.resources)


def starting_values(
    received: Tensors,
    state: DeviceState,
    home: Mapping[ComponentName, int],
    shares: Callable[[ComponentName, str], bool],
) -> Tensors:
    """What w_i starts from: of components at home the device's own value where it counts, of others what came, but for
    the tensors that are not shared, of which the device has its own once it has taken part."""
    own = {name: state.home[name] for name in own_values(home, state.home, state.round)}
    unshared = {
        name: {key: value for key, value in group.items() if not shares(name, key)}
        for name, group in state.home.items()
    }
    return {name: {**group, **unshared.get(name, {})} for name, group in received.items()} | own
