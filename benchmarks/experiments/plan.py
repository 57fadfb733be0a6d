"""What is run: conditions (how much data, how it is spread, which devices) and algorithms with their settings.

All personal algorithms have one budget of local steps beside the federated ones, rounds x tau + `MORE`, one patience.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from experiments.devices import PATTERNS, Split
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml

FILE = Path(__file__).with_name("federation.toml")

MORE = 200
"""Local steps that a personal algorithm may have beside tau a round."""
P = 50
"""Of these the student's in TAP's stage 2. In `tap` the teacher has as many, so that 100 are left over."""
RATE = 1e-3
"""Of the student, and of the teacher in `tap`: a third of the rounds' rate."""
PATIENCE = 25


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
    | {
        f"encoders-{layers or 'all'}": Condition(Split(200, 0.5), settings={"lora": {"encoder_layers": layers}})
        for layers in (2, None)
    }
    | {
        "quick": Condition(
            Split(examples=48, alpha=0.5, test=16),
            rounds=2,
            patterns={name: PATTERNS[name] for name in ("classifier-of-both", "text-questioner")},
        )
    }
)

MAIN = tuple(f"{much}-{alpha}" for much in ("limited", "ample") for alpha in ("0.1", "0.5", "even"))
"""The conditions of the main table."""
SEEDS = (1, 2, 3, 4, 5)

_MORE = {"steps": MORE, "patience": PATIENCE}
_STAGE_2 = {"steps": P, "learning_rate": RATE}
_STAGE_2_HELD_OUT = {
    **_STAGE_2,
    "teacher_steps": MORE - P,
    "teacher_learning_rate": 3e-3,
    "teacher_share": 0.5,
    "average": True,
    "patience": PATIENCE,
}
_TAP: dict[str, Any] = {"name": "tap", "distillation": _STAGE_2}
_HELD_OUT: dict[str, Any] = {
    "name": "tap",
    "decision": "always",
    "replacement": "soft",
    "selection": True,
    "distillation": _STAGE_2_HELD_OUT,
}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedavg_finetune": {"name": "fedavg_finetune", **_MORE},
    "fedavg_finetune_mean": {"name": "fedavg_finetune", **_MORE, "average": True},
    "local": {"name": "local", **_MORE},
    "fedper": {"name": "fedper", "finetune": True, **_MORE},
    "fedsa": {"name": "fedsa", "finetune": True, **_MORE},
    "ditto": {"name": "ditto", **_MORE},
    "pfedme": {"name": "pfedme", **_MORE},
    "tap": _TAP,
    "tap_mean": {**_TAP, "distillation": {**_STAGE_2, "average": True}},
    "tap_held_out": _HELD_OUT,
    "tap_held_out_by_error": {**_HELD_OUT, "selection_by": "error"},
    "tap_held_out_no_stage1": {**_HELD_OUT, "stage1": False},
    "tap_held_out_no_selection": {**_HELD_OUT, "selection": False},
    "tap_held_out_no_mixture": {**_HELD_OUT, "distillation": {**_STAGE_2_HELD_OUT, "teacher_share": 0.0}},
    "tap_held_out_hard": {**_HELD_OUT, "decision": "paired", "replacement": "hard"},
}
"""Settings of `[algorithm]` by the name in the tables."""


def digest(condition: Condition, seed: int, algorithm: Mapping[str, Any]) -> str:
    """What tells results of these settings from those of others. Defaults of the product do not enter it."""
    given = {"condition": asdict(condition), "seed": seed, "algorithm": algorithm, "base": FILE.read_text("utf-8")}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


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
