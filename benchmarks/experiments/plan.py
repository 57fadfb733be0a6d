"""What is run: conditions (how much data, how it is spread, which devices) and algorithms with their settings.

All personal algorithms have one budget of local steps beside the federated ones, and one patience: rounds x tau + P.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from experiments.devices import PATTERNS, Split
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml

FILE = Path(__file__).with_name("federation.toml")

P = 50
"""Steps of stage 2, and what fine-tuning gets beside tau steps a round."""
PATIENCE = 25
RATE = 1e-3
"""Learning rate of what comes after the rounds."""


@dataclass(frozen=True)
class Condition:
    """``rounds``: of which every device takes part in each."""

    split: Split
    rounds: int = 10
    patterns: Mapping[str, Sequence[str]] = field(default_factory=lambda: PATTERNS)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


CONDITIONS = (
    {f"limited-{alpha or 'even'}": Condition(Split(examples=200, alpha=alpha)) for alpha in (0.1, 0.5, None)}
    | {f"ample-{alpha or 'even'}": Condition(Split(examples=1000, alpha=alpha)) for alpha in (0.1, 0.5, None)}
    | {"quick": Condition(Split(examples=48, alpha=0.5, test=16), rounds=2)}
)

_STAGE_2 = {"steps": P, "learning_rate": RATE, "patience": PATIENCE, "skip_worse": True}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedavg_finetune": {"name": "fedavg_finetune", "steps": P, "patience": PATIENCE},
    "local": {"name": "local", "steps": P, "patience": PATIENCE},
    "tap_paper": {"name": "tap", "distillation": {"steps": P, "learning_rate": RATE}},
    "tap_paired": {"name": "tap", "decision": "paired", "distillation": {"steps": P, "learning_rate": RATE}},
    "tap_paired_selection": {"name": "tap", "decision": "paired", "selection": True, "distillation": _STAGE_2},
    "tap_soft_selection": {
        "name": "tap",
        "decision": "paired",
        "k": 0.0,
        "replacement": "soft",
        "selection": True,
        "distillation": _STAGE_2,
    },
}


@cache
def base() -> FederationConfig:
    config = load_toml(FILE, FederationConfig)
    return config.model_copy(update={"foundation": str((FILE.parent / config.foundation).resolve())})


def configured(condition: Condition, seed: int, algorithm: Mapping[str, Any]) -> FederationConfig:
    """The federation's settings for one algorithm."""
    settings = base().model_dump()
    settings.update(seed=seed, algorithm=dict(algorithm))
    settings["rounds"] |= {
        "total": condition.rounds,
        "clients_per_round": len(condition.patterns) * condition.split.groups,
    }
    settings["training"] |= {"decision_set": "always"}
    for table, values in condition.settings.items():
        settings[table] |= values
    for task in settings["tasks"].values():
        task.pop("name")
    return FederationConfig.model_validate(settings)
