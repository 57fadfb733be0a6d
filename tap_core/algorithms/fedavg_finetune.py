"""FedAvg, and at the end each device trains the global model on its own data (docs/method.md section 11)."""

from typing import TYPE_CHECKING

from pydantic import Field

from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, Personal, no_history
from tap_core.settings.base import AlgorithmSettings

if TYPE_CHECKING:
    from tap_core.algorithms.base import Tensors
    from tap_core.algorithms.device import Local


class FineTuning(AlgorithmSettings):
    """Local steps after the last round, as many as TAP's personal set gets in both its stages."""

    steps: int = Field(
        default=50, ge=0, description="Steps beside those that TAP's personal set would have had in the rounds: its P."
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="Steps that may bring nothing on the decision sets before training ends, with the best values "
        "unless `average` says otherwise; 0: all steps in any case.",
    )
    average: bool = Field(
        default=False,
        description="Whether training ends with the mean of the values after each step.",
    )

    @property
    def needs_decision_set(self) -> bool:
        return self.patience > 0


class FedAvgFinetune(Algorithm[FineTuning]):
    Settings = FineTuning

    def start(self, local: "Local") -> "Tensors":
        """What is trained: the final global components."""
        return local.model.state("federated")

    def personalize(self, local: "Local", round_number: int, state: DeviceState, federated: Federated) -> Personal:
        return Personal({}, no_history(local.tasks))

    def finish(self, local: "Local", state: DeviceState) -> Final:
        """tau steps for each round that the device took part in, and P more, at the rounds' learning rate."""
        training = self.config.training
        local.model.load("personal", self.start(local))
        if steps := training.steps * state.rounds + self.settings.steps:
            local.train(
                "personal",
                "fine-tuning",
                "the end",
                steps=steps,
                learning_rate=training.learning_rate,
                patience=self.settings.patience,
                average=self.settings.average,
            )
        return Final(local.model.state("personal"))
