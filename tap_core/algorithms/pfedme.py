"""pFedMe (Dinh et al., arXiv 2006.08848): personal models as Moreau envelopes of the device's loss.

    theta = argmin L(theta) + lambda / 2 |theta - w|^2,   w <- w - eta lambda (w - theta)

The first is approached by a few steps on the device's data; both are done again and again in a round. What is federated
is w, so that it has a trajectory of its own.
"""

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, Personal, mixed
from tap_core.settings.base import AlgorithmSettings
from tap_core.training.optimizer import warmed_up

if TYPE_CHECKING:
    from tap_core.algorithms.device import Local


class PFedMeSettings(AlgorithmSettings):
    """Personal sets near to a global one that moves towards them."""

    pull: float = Field(default=15.0, gt=0, description="lambda: of the squared distance from w.")
    eta: float = Field(
        default=0.05, gt=0, description="w moves towards theta by eta lambda of the way: at most all of it."
    )
    inner_steps: int = Field(default=5, ge=1, description="K, steps of theta before w moves; training.steps / K times.")
    steps: int = Field(default=0, ge=0, description="Steps of theta after the last round, near the final global set.")
    patience: int = Field(
        default=0, ge=0, description="Of these steps, how many may bring nothing on the decision sets; 0: any number."
    )

    @property
    def needs_decision_set(self) -> bool:
        return self.patience > 0


class PFedMe(Algorithm[PFedMeSettings]):
    Settings = PFedMeSettings

    def federate(self, local: "Local", round_number: int, state: DeviceState) -> Federated:
        """tau steps in all; theta starts from the received w and goes on from where it is."""
        settings, rate = self.settings, warmed_up(self.config, round_number)
        received = w = local.model.state("federated")
        local.model.load("personal", received)
        losses = []
        for turn in range(max(1, self.config.training.steps // settings.inner_steps)):
            pull = local.pull(settings.pull, w)
            steps = min(settings.inner_steps, self.config.training.steps)
            losses.append(
                local.train(
                    "personal",
                    "federated",
                    round_number,
                    turn,
                    steps=steps,
                    learning_rate=rate,
                    pull=pull,
                    only=self.trains(round_number),
                )
            )
            w = mixed(w, local.model.state("personal"), min(1.0, settings.eta * settings.pull))
        loss = {task: float(np.mean([turn[task] for turn in losses])) for task in losses[0]}
        return Federated(received, w, loss, local.model.state("personal"))

    def personalize(self, local: "Local", round_number: int, state: DeviceState, federated: Federated) -> Personal:
        assert federated.personal is not None
        return Personal(federated.personal, dict(federated.loss))

    def finish(self, local: "Local", state: DeviceState) -> Final:
        """theta once more, near the final w, if there are steps for it; else the last one."""
        if self.settings.steps:
            final, rate = local.model.state("federated"), self.config.training.learning_rate
            local.model.load("personal", final)
            pull = local.pull(self.settings.pull, final)
            steps, patience = self.settings.steps, self.settings.patience
            local.train(
                "personal", "federated", "the end", steps=steps, learning_rate=rate, pull=pull, patience=patience
            )
        return Final(local.model.state("personal"))
