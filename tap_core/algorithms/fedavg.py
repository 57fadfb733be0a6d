"""FedAvg (McMahan et al., arXiv 1602.05629): there is no personal model, everybody uses the global one."""

from typing import TYPE_CHECKING

from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, Personal, no_history
from tap_core.settings.base import AlgorithmSettings

if TYPE_CHECKING:
    from tap_core.algorithms.device import Local


class FedAvgSettings(AlgorithmSettings):
    """The global model as it is: nothing can be told."""


class FedAvg(Algorithm[FedAvgSettings]):
    Settings = FedAvgSettings

    def personalize(self, local: "Local", round_number: int, state: DeviceState, federated: Federated) -> Personal:
        return Personal({}, no_history(local.tasks))

    def finish(self, local: "Local", state: DeviceState) -> Final:
        return Final(local.model.state("federated"))
