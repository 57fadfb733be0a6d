"""The limit of an update's norm: absolute, by factor, by the optimizer's reach; and that norms are the true ones."""

import math

import numpy as np
import pytest

from coordinator.checks import Unacceptable, check_change
from coordinator.forms import Form
from coordinator.norms import WINDOW, Bound, after, median
from protocol.tensors import DTYPES, ComponentTensors, encode_tensors
from tap_core.settings.federation import FederationConfig

TRAINING = {"steps": 20, "learning_rate": 1e-3, "warmup_rounds": 0, "weight_decay": 0.0}
SHAPES = {"z": (3, 70), "a": (5,), "large": (300, 300)}


def bound(limit, *, dtype="float32", **training):
    values = {
        "name": "fed",
        "foundation": "f",
        "tasks": {"t": {"kind": "text_generation", "inputs": ["text"]}},
        "rounds": {"max_update_norm": limit},
        "training": {**TRAINING, **training},
        "wire": {"dtype": dtype},
    }
    return Bound(FederationConfig.model_validate(values))


def encoded(tensors):
    return encode_tensors(ComponentTensors("c", tensors))


def test_no_limit_and_an_absolute_one():
    assert not bound("none").exists and bound("none").limit(0, 10, 1.0, ()) == math.inf
    assert bound(5).exists and bound("5.0").limit(0, 10, 1e9, ((0, 1.0),) * 5) == 5.0


def test_a_factor_of_the_running_median_counts_once_there_are_three_and_zeros_do_not_enter():
    limit, few = bound("10x").limit, ((0, 1e-5), (1, 0.0), (2, 3e-5))
    farthest = limit(3, 100, 0.0, ())
    assert 0.2 < farthest < 0.25  # 20 steps of 1e-3 and a little, times the root of 100
    assert limit(3, 100, 0.0, few) == farthest
    assert limit(3, 100, 0.0, (*few, (3, 2e-5))) == pytest.approx(2e-4)
    assert limit(3, 100, 0.0, ((0, 1.0),) * 3) == farthest  # never more than the optimizer can do
    long_ago = ((0, 9e-5),) * 5
    assert limit(99, 100, 0.0, long_ago + ((1, 1e-5),) * WINDOW) == pytest.approx(1e-4)


def test_norms_of_the_first_rounds_are_measured_by_their_learning_rate():
    """A component that is seldom trained would else never be trained again once the warm-up is over."""
    limit = bound("10x", warmup_rounds=20).limit
    early = ((0, 1e-6), (1, 2e-6), (2, 3e-6))
    assert limit(0, 100, 0.0, early) == pytest.approx(10 * 1.818e-6, rel=1e-3)  # 2e-6 in round 1, in round 0's units
    assert limit(25, 100, 0.0, early) == pytest.approx(3 * 10 * 1.818e-6, rel=1e-3)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_reach_grows_with_the_base_by_decay_and_rounding(dtype):
    no_decay, decay = bound("10x", dtype=dtype), bound("10x", dtype=dtype, weight_decay=1.0)
    assert decay.limit(0, 100, 10.0, ()) - no_decay.limit(0, 100, 10.0, ()) == pytest.approx(0.2, rel=0.05)
    assert no_decay.limit(0, 100, 10.0, ()) >= no_decay.limit(0, 100, 0.0, ()) + 10 * 2**-24


def test_absurd_settings_limit_nothing_instead_of_failing():
    assert bound("10x", learning_rate=1e9, weight_decay=1e9, steps=1000).limit(0, 10, 1.0, ()) == math.inf


def test_recent_norms_grow_to_a_window():
    recent = {}
    for number in range(WINDOW + 2):
        recent = after(recent, number, {"a": float(number), "b": None})
    assert recent == {"a": tuple((number, float(number)) for number in range(2, WINDOW + 2))}
    assert median([3.0, None, 1.0, 8.0]) == 3.0 and median([None]) is None and median([]) is None


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_distance_is_the_true_one_whatever_the_layout(dtype):
    random = np.random.default_rng(1)
    one, other = (
        {name: random.normal(size=shape).astype(DTYPES[dtype]) for name, shape in SHAPES.items()} for _ in range(2)
    )
    form = Form("c", SHAPES, dtype)
    assert form.values == 90_215
    flat = np.concatenate([(one[name].astype("f8") - other[name].astype("f8")).ravel() for name in SHAPES])
    assert form.distance(encoded(one), encoded(other)) == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    assert form.distance(encoded(one), encoded(one)) == 0
    base = np.concatenate([one[name].astype("f8").ravel() for name in SHAPES])
    assert form.distance(encoded(one)) == pytest.approx(np.linalg.norm(base), rel=1e-12)


def test_the_largest_float32_is_measured_and_refused():
    form, huge = Form("c", {"w": (1000,)}, "float32"), np.full(1000, 3e38, np.float32)
    one, other = encoded({"w": huge}), encoded({"w": -huge})
    assert 1.8e40 < form.distance(one, other) < 2e40
    with pytest.raises(Unacceptable, match=r"norm: 'c': the update's norm is 1\.897e\+40, of at most 1e\+30"):
        check_change(form, one, other, bound("1e30"), 0, ())


def test_what_is_near_the_limit_is_weighed_with_its_base():
    """Decay may move a large component farther than gradients alone."""
    form, before = Form("c", {"w": (4,)}, "float32"), np.full(4, 1000, np.float32)
    sent, decayed = encoded({"w": before}), encoded({"w": before * 0.99})
    assert check_change(form, decayed, sent, bound("10x", weight_decay=1.0), 0, ()) == pytest.approx(20, rel=1e-4)
    with pytest.raises(Unacceptable, match="norm"):
        check_change(form, decayed, sent, bound("10x"), 0, ())
