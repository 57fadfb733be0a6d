"""Training alone: each device trains a model of its own from version 0 and shares nothing.

It is fine-tuning of a model that nobody has federated: all its steps come at the end, so that rounds only count them.
What others federate meanwhile makes no difference to it, and it can be driven along any trajectory.
"""

from typing import TYPE_CHECKING

from tap_core.algorithms.base import DeviceState, Federated, no_history
from tap_core.algorithms.fedavg_finetune import FedAvgFinetune, FineTuning

if TYPE_CHECKING:
    from tap_core.algorithms.base import Tensors
    from tap_core.algorithms.device import Local
    from tap_core.names import ComponentName


class LocalSettings(FineTuning):
    """Training alone, as many local steps as TAP's personal set gets in both its stages."""


class LocalOnly(FedAvgFinetune):
    Settings = LocalSettings

    @classmethod
    def follows(cls) -> bool:
        return True

    def shares(self, component: "ComponentName", tensor: str) -> bool:
        return False

    def federate(self, local: "Local", round_number: int, state: DeviceState) -> Federated:
        received = local.model.state("federated")
        return Federated(received, received, no_history(local.tasks))

    def start(self, local: "Local") -> "Tensors":
        return local.version_0()
