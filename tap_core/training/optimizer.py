"""The optimizer of a phase of training, in numbers: AdamW's constants, the learning rate, and how far it can move.

It needs no torch: `loop.py` trains with these numbers, and the coordinator, which trains nothing, bounds updates
with them.
"""

from dataclasses import dataclass

import numpy as np

from tap_core.settings.federation import FederationConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8

_EXACT_STEPS = 100_000
"""Steps whose bound is added up one by one; each further one adds the bound's limit."""


_START = 1 / 3
"""The first round's share of the learning rate, where there is a warm-up: the authors' and torch's LinearLR's."""


def warmed_up(config: FederationConfig, round_number: int) -> float:
    """The learning rate of a round t of stage 1, t from 0 (docs/method.md section 6).

        rate(t) = learning_rate * (1/3 + 2/3 * min(1, t / w))

    grows linearly from a third of the rate in round 0 to the whole in round w, and is constant from there on: torch's
    LinearLR with start_factor 1/3 and total_iters w. w is `training.warmup_rounds`; with w = 0 there is no warm-up.
    """
    rate, rounds = config.training.learning_rate, warmup_rounds(config)
    return rate * (_START + (1 - _START) * round_number / rounds) if round_number < rounds else rate


def warmup_rounds(config: FederationConfig) -> int:
    """w: a tenth of all rounds, 1 at the least and 20 at the most, unless the settings give a number."""
    rounds = config.training.warmup_rounds
    return min(20, max(1, config.rounds.total // 10)) if rounds == "auto" else rounds


@dataclass(frozen=True)
class Reach:
    """How far one phase can move n values W: by at most ``per_value`` * sqrt(n) + ``per_norm`` * ||W|| (Euclidean)."""

    per_value: float
    per_norm: float


def reach(config: FederationConfig, round_number: int) -> Reach:
    """What no gradients whatever can make a phase of that round exceed, in exact arithmetic.

    A step is w_t = q w_{t-1} - lr u_t with q = 1 - lr * weight_decay, so that after T steps
    w_T - W = (q^T - 1) W - lr sum_t q^(T-t) u_t. Of u_t each value is bounded by `step_bounds`. A value that gets no
    gradient in a step is left alone, which only takes steps away.
    """
    rate, steps = warmed_up(config, round_number), config.training.steps
    keep = 1 - rate * config.training.weight_decay
    bounds = step_bounds(min(steps, _EXACT_STEPS))
    total = float(bounds.sum()) + (steps - len(bounds)) * _limit_of_bounds()
    with np.errstate(over="ignore"):  # with absurd settings it is infinite, which bounds nothing, as is right
        growth = float(np.float64(max(1.0, abs(keep))) ** steps)
        return Reach(rate * total * growth, 1 - keep**steps if 0 <= keep <= 1 else 1 + growth)


def step_bounds(steps: int) -> np.ndarray:
    """The most that Adam moves a value in each of the first steps, in learning rates.

    Step t moves it by m / (sqrt(v) + epsilon), with the bias-corrected means m = sum_i w_i g_i of the gradients and
    v = sum_i u_i g_i^2 of their squares, w_i = (1 - b1) b1^(t-i) / (1 - b1^t) and u_i the same of b2. By Cauchy and
    Schwarz |m| <= sqrt(sum_i w_i^2 / u_i) sqrt(v). That root is 1 for the first step and grows to 7.27.
    """
    first, second = BETAS
    ratio, t = first**2 / second, np.arange(1, steps + 1, dtype=np.float64)
    sums = (1 - ratio**t) / (1 - ratio)
    return np.asarray(np.sqrt((1 - first) ** 2 / (1 - second) * (1 - second**t) / (1 - first**t) ** 2 * sums))


def _limit_of_bounds() -> float:
    first, second = BETAS
    return float(np.sqrt((1 - first) ** 2 / (1 - second) / (1 - first**2 / second)))
