"""What an algorithm of personalization is: what a device does in a round and at the end (docs/method.md section 10).

It knows a device's model, data and machine, as `Local`, and its state. It does not know who carries tensors, files,
other devices, or how results are measured.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import ml_dtypes
import numpy as np
from accelerate import Accelerator

from tap_core.examples import Example, TaskData
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel, Tensors
from tap_core.names import ComponentName, DeviceName, TaskName
from tap_core.seeds import derive_seed
from tap_core.settings.federation import FederationConfig, TaskConfig, WireDtype
from tap_core.training.loop import Extra, TrainingPhase, train
from tap_core.training.progress import OnProgress
from tap_core.training.resources import Resources

WIRE_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in get_args(WireDtype)}
"""What components may travel in, by the name in the settings: numpy's own, and ml_dtypes' where numpy has none."""


@dataclass(frozen=True)
class DeviceState:
    """What a device keeps from round to round and never sends.

    ``personal``: x_i, float32, empty before the first participation. The histories hold h_fed[o] and h_personal[o],
    infinite before the first participation. ``home``: w_r, in the wire's dtype, of each component that stayed at home
    in round ``round`` (`tap_core.cohorts`).
    """

    round: int
    personal: Tensors
    federated_loss: dict[TaskName, float]
    personal_loss: dict[TaskName, float]
    finished: bool = False
    home: Tensors = field(default_factory=dict)

    @classmethod
    def initial(cls, tasks: Iterable[TaskName]) -> "DeviceState":
        """The state before the first participation.

        Args:
            tasks: Names of the device's tasks.

        Returns:
            A state without personal tensors, of round -1, whose histories are infinite.
        """
        infinite = dict.fromkeys(sorted(tasks), math.inf)
        return cls(round=-1, personal={}, federated_loss=infinite, personal_loss=dict(infinite))


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

    def train(
        self,
        parameter_set: ParameterSet,
        phase: str,
        *when: str | int,
        steps: int,
        learning_rate: float,
        extra: Extra | None = None,
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

        Returns:
            The mean training loss per example by task, without ``extra``.

        Raises:
            Diverged: A loss or a parameter left the finite numbers.
        """
        seed = derive_seed(self.config.seed, self.device, *when, phase)
        return train(
            self.model,
            parameter_set,
            self.train_examples,
            self.config.training,
            TrainingPhase(phase, seed, steps, learning_rate),
            self.accelerator,
            extra=extra,
            on_progress=self.on_progress,
            resources=self.resources,
        )


@dataclass(frozen=True)
class Part:
    """What a device's part in a round came to. ``trained``: w_i after training, of which what others share is sent.

    Losses are mean training losses per example by task. ``replaced``: R[o] by task, with the components that changed.
    """

    trained: Tensors
    personal: Tensors
    federated_loss: dict[TaskName, float]
    personal_loss: dict[TaskName, float]
    replaced: dict[TaskName, bool] = field(default_factory=dict)
    replaced_components: tuple[ComponentName, ...] = ()


class Algorithm(ABC):
    """A device's half of the method. It holds settings only: what it knows of a device comes in and goes out."""

    def __init__(self, config: FederationConfig) -> None:
        self.config = config

    def init(self, tasks: Iterable[TaskName]) -> DeviceState:
        """A device's state before its first participation.

        Args:
            tasks: Names of the device's tasks.

        Returns:
            What `take_part` is given the first time.
        """
        return DeviceState.initial(tasks)

    @abstractmethod
    def take_part(self, local: Local, round_number: int, state: DeviceState) -> Part:
        """One round.

        Args:
            local: The device. The model's federated set holds the values that w_i starts from.
            round_number: Which round, from 0.
            state: What the device kept from its last participation.

        Returns:
            What is sent of, what is kept, and the losses.

        Raises:
            Diverged: Training left the finite numbers; ``state`` is still good.
        """

    @abstractmethod
    def finish(self, local: Local, state: DeviceState) -> None:
        """After the last round: leave the final personal set in the model.

        Args:
            local: The device. The model's federated set holds the final global components, its personal set x_i (for a
                device that never took part, the same).
            state: What the device kept from its last participation.

        Raises:
            Diverged: Training left the finite numbers; ``state`` is still good.
        """


def on_wire(tensors: Tensors, dtype: str) -> Tensors:
    """The tensors in the wire's dtype, rounded once."""
    return {
        name: {key: value.astype(WIRE_DTYPES[dtype]) for key, value in group.items()} for name, group in tensors.items()
    }
