"""What an algorithm of personalization is: what a device does in a round and at the end (docs/method.md section 10).

It knows a device's state and, as `Local`, its model, data and machine. It does not know who carries tensors, files,
other devices, or how results are measured. Importing it, and each algorithm's own file, loads no torch: settings are
checked with them where there is none.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

import ml_dtypes
import numpy as np

from tap_core.components import is_lora_a, is_lora_b
from tap_core.names import ComponentName, TaskName
from tap_core.settings.base import AlgorithmSettings
from tap_core.settings.federation import WireDtype
from tap_core.training.optimizer import warmed_up

if TYPE_CHECKING:
    from tap_core.algorithms.device import Local
    from tap_core.settings.federation import FederationConfig, TaskConfig

Tensors = dict[ComponentName, dict[str, np.ndarray]]
"""Component name to tensor name to array."""

WIRE_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in get_args(WireDtype)}
"""What components may travel in, by the name in the settings: numpy's own, and ml_dtypes' where numpy has none."""


@dataclass(frozen=True)
class DeviceState:
    """What a device keeps from round to round and never sends.

    ``personal``: x_i, float32, empty before the first participation. The histories hold h_fed[o] and h_personal[o],
    infinite before the first participation. ``home``: w_r, in the wire's dtype, of each component that stayed at home
    in round ``round`` (`tap_core.cohorts`), and of the others the tensors that the algorithm does not share.
    ``rounds``: how many the device has taken part in. ``candidates``: at the end, the sets that some task selected in
    place of x_i, by name; ``selected``: which, by task.
    """

    round: int
    personal: Tensors
    federated_loss: dict[TaskName, float]
    personal_loss: dict[TaskName, float]
    finished: bool = False
    home: Tensors = field(default_factory=dict)
    rounds: int = 0
    selected: dict[TaskName, str] = field(default_factory=dict)
    candidates: dict[str, Tensors] = field(default_factory=dict)

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

    def personal_for(self, task: TaskName) -> Tensors:
        """The set that answers for a task.

        Args:
            task: The task's name.

        Returns:
            What the task selected at the end, or x_i.
        """
        return self.candidates[self.selected[task]] if task in self.selected else self.personal


@dataclass(frozen=True)
class Federated:
    """What came of training w_i in a round. ``received``: what it started from. ``loss``: h_fed[o]. ``personal``: the
    personal set, of an algorithm that trains both together."""

    received: Tensors
    trained: Tensors
    loss: dict[TaskName, float]
    personal: Tensors | None = None


@dataclass(frozen=True)
class Personal:
    """What a round made of the personal set. ``loss``: h_personal[o]. ``replaced``: R[o] by task, with the components
    that took something over and, if it was not the whole, how much of the federated value each is now made of."""

    tensors: Tensors
    loss: dict[TaskName, float]
    replaced: dict[TaskName, bool] = field(default_factory=dict)
    replaced_components: tuple[ComponentName, ...] = ()
    shares: dict[ComponentName, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Final:
    """The end: x_i, and the sets that tasks chose in its place (see `DeviceState`)."""

    personal: Tensors
    selected: dict[TaskName, str] = field(default_factory=dict)
    candidates: dict[str, Tensors] = field(default_factory=dict)


S = TypeVar("S", bound=AlgorithmSettings)


class Algorithm(ABC, Generic[S]):
    """A device's half of a method. It holds settings only: what it knows of a device comes in and goes out."""

    Settings: ClassVar[type[AlgorithmSettings]] = AlgorithmSettings
    """Its `[algorithm]` table."""

    def __init__(self, config: "FederationConfig", settings: S) -> None:
        self.config, self.settings = config, settings

    def shares(self, component: ComponentName, tensor: str) -> bool:
        """Whether a tensor is federated; one that is not stays with its owners, from round to round.

        Args:
            component: The component's name.
            tensor: The tensor's name within it.

        Returns:
            Whether it is sent and averaged.
        """
        return True

    def is_shared(self, component: ComponentName, tensor: str) -> bool:
        """`shares`, unless the federation's settings keep the tensor at home whatever the algorithm.

        Args:
            component: The component's name.
            tensor: The tensor's name within it.

        Returns:
            Whether it is sent and averaged.
        """
        keeps = self.config.rounds.factors == "share_a" and is_lora_b(tensor)
        return not keeps and self.shares(component, tensor)

    def trains(self, round_number: int) -> Callable[[str], bool]:
        """Which tensors are trained when w_i is. Where rounds alternate, B comes first: at the start it is zero, and A
        has no gradient.

        Args:
            round_number: Which round, from 0.

        Returns:
            A function from a tensor's name within its component to whether it is trained.
        """
        if self.config.rounds.factors != "alternate":
            return lambda tensor: True
        still = is_lora_b if round_number % 2 else is_lora_a
        return lambda tensor: not still(tensor)

    @property
    def shares_whole_components(self) -> bool:
        """Whether what is federated goes out whole: over a network it must."""
        return type(self).shares is Algorithm.shares and self.config.rounds.factors != "share_a"

    @classmethod
    def follows(cls) -> bool:
        """Whether its federated trajectory is the common one: everything is shared and trained as `federate` does.
        Any number of such algorithms can be driven along one run of it."""
        return cls.shares is Algorithm.shares and cls.federate is Algorithm.federate

    def federate(self, local: "Local", round_number: int, state: DeviceState) -> Federated:
        """Step 2 of a round. Of an algorithm that `follows` the common trajectory, nothing of ``state`` enters.

        Args:
            local: The device. The model's federated set holds the values that w_i starts from.
            round_number: Which round, from 0.
            state: What the device kept from its last participation.

        Returns:
            What w_i started from, what it became, and h_fed.

        Raises:
            Diverged: Training left the finite numbers; ``state`` is still good.
        """
        received = local.model.state("federated")
        loss = local.train(
            "federated",
            "federated",
            round_number,
            steps=self.config.training.steps,
            learning_rate=warmed_up(self.config, round_number),
            pull=local.pull(self.config.training.proximal, received) if self.config.training.proximal else None,
            only=self.trains(round_number),
        )
        return Federated(received, local.model.state("federated"), loss)

    @abstractmethod
    def personalize(self, local: "Local", round_number: int, state: DeviceState, federated: Federated) -> Personal:
        """What the round makes of the personal set.

        Args:
            local: The device. The model's federated set holds the trained w_i; what the personal one holds is of no
                meaning.
            round_number: Which round, from 0.
            state: What the device kept from its last participation.
            federated: What came of training w_i.

        Returns:
            The personal set, its losses, and what it took over.

        Raises:
            Diverged: Training left the finite numbers; ``state`` is still good.
        """

    @abstractmethod
    def finish(self, local: "Local", state: DeviceState) -> Final:
        """After the last round.

        Args:
            local: The device. The model's federated set holds the final global components, its personal set x_i (for a
                device that has none yet, the same).
            state: What the device kept from its last participation.

        Returns:
            The final personal set, and what tasks chose in its place.

        Raises:
            Diverged: Training left the finite numbers; ``state`` is still good.
        """


def on_wire(tensors: Tensors, dtype: str) -> Tensors:
    """The tensors in the wire's dtype, rounded once."""
    return {
        name: {key: value.astype(WIRE_DTYPES[dtype]) for key, value in group.items()} for name, group in tensors.items()
    }


def mixed(ours: Tensors, theirs: Tensors, share: float) -> Tensors:
    """(1 - share) ours + share theirs of each of our components, float32; the ends are copies."""
    if share in (0, 1):
        return {name: dict((theirs if share else ours)[name]) for name in ours}
    return {
        name: {
            key: ((1 - share) * value + share * theirs[name][key]).astype(np.float32) for key, value in group.items()
        }
        for name, group in ours.items()
    }


def no_history(tasks: Iterable["TaskConfig"]) -> dict[TaskName, float]:
    """h_personal[o] of a personal set that was not trained."""
    return dict.fromkeys((task.name for task in tasks), math.inf)
