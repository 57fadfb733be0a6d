"""FedPer (Arivazhagan et al., arXiv 1912.00818): the base is federated, the last layers stay with each device."""

from typing import TYPE_CHECKING

from pydantic import Field

from tap_core.algorithms.base import DeviceState, Final
from tap_core.algorithms.fedavg_finetune import FedAvgFinetune, FineTuning
from tap_core.components import family

if TYPE_CHECKING:
    from tap_core.algorithms.device import Local
    from tap_core.names import ComponentName


class PartlyShared(FineTuning):
    """The global model with the device's own values of what is not shared."""

    finetune: bool = Field(
        default=False, description="Whether the device trains it at the end, as many steps as in fedavg_finetune."
    )


class FedPer(FedAvgFinetune):
    """The decoders stay."""

    Settings = PartlyShared

    def shares(self, component: "ComponentName", tensor: str) -> bool:
        return family(component) != "decoder"

    def finish(self, local: "Local", state: DeviceState) -> Final:
        """The federated set holds the device's own values where they are not shared: it is the personal model."""
        assert isinstance(self.settings, PartlyShared)
        return super().finish(local, state) if self.settings.finetune else Final(local.model.state("federated"))
