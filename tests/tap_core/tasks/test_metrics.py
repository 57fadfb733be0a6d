"""Metrics: exact numbers by hand, and intervals."""

import numpy as np
import pytest

from tap_core.settings.federation import TaskConfig
from tap_core.tasks import task_kind
from tap_core.tasks.metrics import (
    ACCURACY,
    MACRO_F1,
    MAE,
    MSE,
    R_SQUARED,
    TOKEN_F1,
    macro_f1,
    r_squared,
    token_f1,
)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Red heart", "red heart", 1.0),
        ("heart", "red heart", 2 / 3),
        ("blue", "red heart", 0.0),
        ("", "red", 0.0),
        ("", "", 1.0),
        ("a a b", "a b b", 2 / 3),
    ],
)
def test_token_f1(answer: str, reference: str, score: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(score)


def test_macro_f1_is_a_mean_over_the_classes_that_occur() -> None:
    """Class 0: 1 hit, 1 false, 1 missed: 1/2. Class 1: missed: 0. Class 2: right: 1. Class 3 occurs nowhere."""
    answers, wanted = [(0, 2), (0,), ()], [(0, 2), (), (0, 1)]
    assert macro_f1(answers, wanted) == pytest.approx((0.5 + 0 + 1) / 3)
    assert macro_f1([(), ()], [(), ()]) == 1.0


def test_r_squared() -> None:
    assert r_squared([1, 2, 3], [1, 2, 3]) == 1
    assert r_squared([2, 2, 2], [1, 2, 3]) == 0
    assert r_squared([3, 2, 1], [1, 2, 3]) == -3
    assert r_squared([5, 5], [5, 5]) == 1 and r_squared([5, 6], [5, 5]) == 0


@pytest.mark.parametrize(("number", "count"), [(0.1, 3), (0.1, 7), (19.99, 10), (19.99, 1000), (5e15 + 1, 3), (0.0, 4)])
def test_equal_numbers_have_no_spread_whatever_their_mean_rounds_to(number: float, count: int) -> None:
    equal = [number] * count
    assert r_squared([float(np.mean(equal))] * count, equal) == 1
    assert r_squared([number * 1.5 + 1] * count, equal) == 0
    kind, task = task_kind("regression"), TaskConfig(name="r", kind="regression", inputs=("text",))
    assert kind.fit(task, equal)["std"] == 1.0


def test_a_small_spread_is_one_all_the_same() -> None:
    kind, task = task_kind("regression"), TaskConfig(name="r", kind="regression", inputs=("text",))
    assert kind.fit(task, [1e6, 1e6 + 1e-3])["std"] == pytest.approx(5e-4)
    assert r_squared([1e6, 1e6], [1e6, 1e6 + 1e-3]) == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("number", [1e308, "-1e101"])
def test_a_number_whose_squares_overflow_is_refused(number: object) -> None:
    task = TaskConfig(name="r", kind="regression", inputs=("text",))
    with pytest.raises(ValueError, match=r"beyond 1e\+100, the most that task 'r' takes"):
        task_kind("regression").parse(number, task)


def test_means_over_examples() -> None:
    assert ACCURACY.value([1, 2, 2], [1, 2, 3]) == pytest.approx(2 / 3)
    assert MAE.value([1.0, 5.0], [2.0, 2.0]) == 2.0
    assert MSE.value([np.zeros((3, 2, 2))], [np.full((3, 2, 2), 2.0)]) == 4.0
    assert TOKEN_F1.value(["a", "b"], ["a", "a"]) == 0.5


def test_an_interval_is_that_of_the_bootstrap_and_the_same_every_time() -> None:
    generator = np.random.default_rng(0)
    wanted = generator.integers(0, 2, 400).tolist()
    answers = [w if generator.random() < 0.8 else 1 - w for w in wanted]
    low, high = ACCURACY.interval(answers, wanted)
    value = ACCURACY.value(answers, wanted)
    normal = 1.96 * np.sqrt(value * (1 - value) / 400)
    assert low == pytest.approx(value - normal, abs=0.01) and high == pytest.approx(value + normal, abs=0.01)
    assert (low, high) == ACCURACY.interval(answers, wanted)
    assert ACCURACY.interval([1, 1], [1, 1]) == (1.0, 1.0)


def test_an_interval_of_a_metric_over_all_examples_draws_examples_anew() -> None:
    """R^2 of noise of a quarter of the spread is 1 - 1/16; with 300 examples it is known to a percent or so."""
    generator = np.random.default_rng(1)
    wanted = generator.normal(size=300)
    answers = wanted + generator.normal(size=300) / 4
    low, high = R_SQUARED.interval(answers.tolist(), wanted.tolist())
    assert low < R_SQUARED.value(answers.tolist(), wanted.tolist()) < high
    assert 0.005 < high - low < 0.05
    sets = [(0,), (1,), (0, 1)] * 20
    assert MACRO_F1.interval(sets, sets) == (1.0, 1.0)
