"""The learning rate of each round, and how far a phase can move a component: never exceeded, no wider than need be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.norms import Bound
from tap_core.algorithms.base import WIRE_DTYPES, on_wire
from tap_core.settings.federation import FederationConfig
from tap_core.settings.runtime import Runtime
from tap_core.training.loop import TrainingPhase, train
from tap_core.training.optimizer import BETAS, EPSILON, reach, step_bounds, warmed_up, warmup_rounds
from tap_core.training.runtime import make_accelerator

Make = Callable[..., Any]


def federation(total: int = 200, **training: Any) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "name": "fed",
            "foundation": "f",
            "tasks": {"t": {"kind": "text_generation", "inputs": ["text"]}},
            "rounds": {"total": total},
            "training": training,
        }
    )


def test_warm_up_is_linear_from_a_third_of_the_rate_then_constant() -> None:
    config = federation(learning_rate=1.0, warmup_rounds=4)
    wanted = [1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0, 1.0, 1.0]
    assert [warmed_up(config, t) for t in (0, 1, 2, 3, 4, 5, 99)] == pytest.approx(wanted, rel=1e-12)
    assert warmed_up(config, 4) == 1.0
    assert [warmed_up(federation(learning_rate=1.0, warmup_rounds=0), t) for t in (0, 1)] == [1.0, 1.0]


@pytest.mark.parametrize("rounds", [1, 3, 20])
def test_warm_up_is_torchs_linear_one(rounds: int) -> None:
    config = federation(learning_rate=3e-4, warmup_rounds=rounds)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 3, total_iters=rounds)
    for round_number in range(rounds + 3):
        assert warmed_up(config, round_number) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_warm_up_takes_a_tenth_of_the_rounds_unless_a_number_is_given() -> None:
    lengths = {1: 1, 3: 1, 10: 1, 19: 1, 20: 2, 150: 15, 200: 20, 1000: 20}
    assert {total: warmup_rounds(federation(total)) for total in lengths} == lengths
    assert warmup_rounds(federation(3, warmup_rounds=7)) == 7 and warmup_rounds(federation(300, warmup_rounds=0)) == 0
    assert warmed_up(federation(6, learning_rate=1.0), 0) == pytest.approx(1 / 3)
    assert warmed_up(federation(6, learning_rate=1.0), 1) == 1.0


def moved_by_adam(gradients: list[float]) -> list[float]:
    """How far each gradient moves a value, in learning rates, by torch's own optimizer."""
    value = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([value], lr=1.0, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    moves = []
    for gradient in gradients:
        before = value.item()
        value.grad = torch.full_like(value, gradient)
        optimizer.step()
        moves.append(abs(value.item() - before))
    return moves


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 300, 4000])
def test_the_worst_gradients_move_a_value_as_far_as_the_bound_and_no_gradients_farther(steps: int) -> None:
    bounds = step_bounds(steps)
    places = steps - 1 - np.arange(steps)
    worst = BETAS[0] ** places / BETAS[1] ** places  # w_i / u_i: where Cauchy and Schwarz are equal
    worst /= worst[-1]
    assert moved_by_adam(worst.tolist())[-1] == pytest.approx(bounds[-1], rel=1e-4)
    random = np.random.default_rng(steps)
    for gradients in (worst, random.normal(size=steps), random.normal(size=steps) ** 9, np.geomspace(1e-9, 1e9, steps)):
        assert (np.array(moved_by_adam(gradients.tolist())) <= bounds * (1 + 1e-9)).all()


def test_the_bound_of_a_step_is_1_at_first_and_7_27_in_the_end() -> None:
    bounds = step_bounds(20_000)
    assert bounds[0] == 1 and bounds[-1] == pytest.approx(7.27, abs=5e-3) and (np.diff(bounds) > -1e-12).all()
    far = federation(steps=10**12, learning_rate=1e-3, warmup_rounds=0, weight_decay=0)
    assert reach(far, 0).per_value == pytest.approx(7.27e9, rel=1e-3)


def test_reach_follows_the_warm_up_and_the_weight_decay() -> None:
    config = federation(steps=20, learning_rate=1e-3, warmup_rounds=10, weight_decay=0.1)
    first, fifth, tenth, later = (reach(config, number) for number in (0, 5, 10, 50))
    assert tenth == later and tenth.per_value == pytest.approx(3 * first.per_value)
    assert fifth.per_value == pytest.approx(2 * first.per_value)
    assert tenth.per_norm == pytest.approx(20 * 1e-3 * 0.1, rel=1e-2)
    assert 20e-3 < tenth.per_value < 23e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1},
        {"steps": 6, "weight_decay": 0.0},
        {"steps": 4, "learning_rate": 0.05, "weight_decay": 3.0},
        {"steps": 3, "learning_rate": 1e-6, "weight_decay": 10.0},
        {"steps": 2, "learning_rate": 0.5, "weight_decay": 5.0, "clip_norm": 100.0},
    ],
)
def test_honest_training_keeps_within_the_limit(
    mini_config: Make, mini_model: Make, mini_examples: Make, settings: dict[str, Any], dtype: str
) -> None:
    config = mini_config(training=settings, wire={"dtype": dtype})
    model = mini_model("colour", training=settings)
    before = on_wire(model.state("federated"), dtype)
    model.load("federated", before)
    data = {"colour": mini_examples("colour").train}
    phase = TrainingPhase("p", 1, config.training.steps, config.training.learning_rate)
    train(model, "federated", data, config.training, phase, make_accelerator(Runtime(device="cpu"), 1))
    after = on_wire(model.state("federated"), dtype)
    assert WIRE_DTYPES[dtype] == next(iter(after["decoder/colour"].values())).dtype
    for name, tensors in after.items():
        pairs = [(tensors[key].astype("f8"), before[name][key].astype("f8")) for key in tensors]
        norm = float(np.sqrt(sum(((new - old) ** 2).sum() for new, old in pairs)))
        base = float(np.sqrt(sum((old**2).sum() for _, old in pairs)))
        assert norm <= Bound(config).limit(0, sum(new.size for new, _ in pairs), base, ())
