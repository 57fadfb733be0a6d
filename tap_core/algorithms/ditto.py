"""Ditto (Li et al., arXiv 2012.04221): a personal model beside the federated one, held near to the global values.

min over x:  L(x) + lambda / 2 |x - W|^2
"""

from typing import TYPE_CHECKING

from pydantic import Field

from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, Personal
from tap_core.settings.base import AlgorithmSettings
from tap_core.training.optimizer import warmed_up

if TYPE_CHECKING:
    from tap_core.algorithms.device import Local


class DittoSettings(AlgorithmSettings):
    """A personal set that is trained in every round and pulled towards the global one."""

    pull: float = Field(default=0.1, ge=0, description="lambda: of the squared distance from the received global set.")
    steps: int = Field(default=0, ge=0, description="Steps of the same kind after the last round.")
    patience: int = Field(
        default=0, ge=0, description="Of these steps, how many may bring nothing on the decision sets; 0: any number."
    )

    @property
    def needs_decision_set(self) -> bool:
        return self.patience > 0


class Ditto(Algorithm[DittoSettings]):
    Settings = DittoSettings

    def personalize(self, local: "Local", round_number: int, state: DeviceState, federated: Federated) -> Personal:
        """tau steps of x_i, which starts from version 0, towards the W that was received in this round."""
        local.model.load("personal", state.personal or local.version_0())
        loss = local.train(
            "personal",
            "personal",
            round_number,
            steps=self.config.training.steps,
            learning_rate=warmed_up(self.config, round_number),
            pull=local.pull(self.settings.pull, federated.received),
        )
        return Personal(local.model.state("personal"), loss)

    def finish(self, local: "Local", state: DeviceState) -> Final:
        local.model.load("personal", state.personal or local.version_0())
        if self.settings.steps:
            pull = local.pull(self.settings.pull, local.model.state("federated"))
            rate = self.config.training.learning_rate
            steps, patience = self.settings.steps, self.settings.patience
            local.train(
                "personal", "personal", "the end", steps=steps, learning_rate=rate, pull=pull, patience=patience
            )
        return Final(local.model.state("personal"))
