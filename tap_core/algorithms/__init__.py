"""Algorithms of personalization: one file each, one line below (docs/method.md section 10). This loads no torch, nor
does importing one of them."""

from typing import TYPE_CHECKING, Any

from tap_core.faces import imported_when_asked
from tap_core.registry import Registry

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmSettings",
    "DeviceState",
    "Federated",
    "Final",
    "FinishOutcome",
    "Local",
    "Participant",
    "Personal",
    "RoundOutcome",
    "TaskResult",
    "algorithm_of",
]

if TYPE_CHECKING:
    from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, Personal
    from tap_core.algorithms.device import Local
    from tap_core.algorithms.measurement import TaskResult
    from tap_core.algorithms.participant import FinishOutcome, Participant, RoundOutcome
    from tap_core.settings.base import AlgorithmSettings
    from tap_core.settings.federation import FederationConfig
else:
    __getattr__ = imported_when_asked(
        __name__,
        {
            "base": ("Algorithm", "AlgorithmSettings", "DeviceState", "Federated", "Final", "Personal"),
            "device": ("Local",),
            "measurement": ("TaskResult",),
            "participant": ("FinishOutcome", "Participant", "RoundOutcome"),
        },
    )

ALGORITHMS: "Registry[type[Algorithm[Any]]]" = Registry("algorithm", "tap_edge.algorithms")
ALGORITHMS.add("tap", "tap_core.algorithms.tap:Tap")
ALGORITHMS.add("local", "tap_core.algorithms.local:LocalOnly")
ALGORITHMS.add("fedavg", "tap_core.algorithms.fedavg:FedAvg")
ALGORITHMS.add("fedavg_finetune", "tap_core.algorithms.fedavg_finetune:FedAvgFinetune")
ALGORITHMS.add("fedper", "tap_core.algorithms.fedper:FedPer")
ALGORITHMS.add("fedsa", "tap_core.algorithms.fedsa:FedSA")
ALGORITHMS.add("ditto", "tap_core.algorithms.ditto:Ditto")
ALGORITHMS.add("pfedme", "tap_core.algorithms.pfedme:PFedMe")


def algorithm_of(config: "FederationConfig") -> "Algorithm[Any]":
    """The federation's algorithm, with its settings.

    Args:
        config: The federation's settings.

    Returns:
        The algorithm that they name.

    Raises:
        UsageError: No algorithm has this name.
    """
    return ALGORITHMS.named(config.algorithm.name)(config, config.algorithm)
