"""Aggregation: exact numbers, one rounding, and no dependence on the order of arrival."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_core.aggregation import aggregate

FLOAT32 = np.dtype(np.float32)
DTYPES = [FLOAT32, np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def tensors(*values, dtype=FLOAT32):
    return {"w": np.array(values, dtype)}


def test_weighted_mean_has_the_exact_value():
    updates = {"a": (1, tensors(1, 2)), "b": (3, tensors(5, -2))}
    result = aggregate(updates, FLOAT32)
    assert result["w"].dtype == FLOAT32
    assert result["w"].tolist() == [(1 * 1 + 3 * 5) / 4, (1 * 2 - 3 * 2) / 4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_device_gets_its_own_bits_back(dtype):
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(dtype)
    values[0, 0] = -0.0
    result = aggregate({"only": (7, {"w": values})}, dtype)["w"]
    assert result.tobytes() == values.tobytes() and result.dtype == dtype


def test_small_terms_survive_because_the_sum_is_in_float64():
    updates = {
        "a": (1, tensors(2**25)),
        "b": (1, tensors(1)),
        "c": (2, tensors(-(2**24))),
    }
    assert aggregate(updates, FLOAT32)["w"].tolist() == [0.25]


@given(
    values=st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(-1000, 1000)),
        min_size=1,
        max_size=6,
    ),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(DTYPES),
)
def test_order_of_arrival_does_not_change_a_bit(values, order, dtype):
    random = np.random.default_rng(len(values))
    updates = {
        f"device-{i}": (
            n,
            {
                "w": (random.normal(size=5) * x).astype(np.float32),
                "b": random.normal(size=(2, 2)),
            },
        )
        for i, (n, x) in enumerate(values)
    }
    arrived = list(updates.items())
    order.shuffle(arrived)
    first, second = aggregate(updates, dtype), aggregate(dict(arrived), dtype)
    assert list(first) == list(second) == ["b", "w"]
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@given(values=st.lists(st.tuples(st.integers(1, 999), st.integers(-4096, 4096)), min_size=1, max_size=5))
def test_the_result_is_the_nearest_float_to_the_exact_mean(values):
    updates = {str(i): (n, tensors(x)) for i, (n, x) in enumerate(values)}
    exact = Fraction(sum(n * x for n, x in values), sum(n for n, _ in values))
    assert aggregate(updates, FLOAT32)["w"][0] == np.float32(float(exact))


def test_bfloat16_is_rounded_once():
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    # 1 + 2**-8 lies halfway between two bfloat16 values; a little more must go up, a little less down.
    above = {"a": (1, {"w": np.array([1 + 2**-8 + 2**-40, -1 - 2**-8 - 2**-40])})}
    below = {"a": (1, {"w": np.array([1 + 3 * 2**-8 - 2**-40])})}
    tie = {"a": (1, {"w": np.array([1 + 2**-8, 1 + 3 * 2**-8])})}
    assert aggregate(above, bfloat16)["w"].astype(float).tolist() == [
        1 + 2**-7,
        -1 - 2**-7,
    ]
    assert aggregate(below, bfloat16)["w"].astype(float).tolist() == [1 + 2**-7]
    assert aggregate(tie, bfloat16)["w"].astype(float).tolist() == [1, 1 + 2**-6]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_shapes_are_kept(shape):
    for dtype in DTYPES:
        result = aggregate({"a": (2, {"w": np.ones(shape, dtype)})}, dtype)["w"]
        assert result.shape == shape and result.flags.c_contiguous


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("size", [1, 2**15 - 1, 2**15, 2**15 + 1, 100_003])
def test_blocks_do_not_show(dtype, size):
    random = np.random.default_rng(size)
    counts = {"a": 3, "b": 5, "c": 11}
    updates = {device: (n, {"w": random.normal(size=size).astype(dtype)}) for device, n in counts.items()}
    whole = sum(n * update["w"].astype(np.float64) for n, update in updates.values()) / 19
    assert aggregate(updates, dtype)["w"].tobytes() == whole.astype(dtype).tobytes()


def test_the_layout_in_memory_does_not_show():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    turned = aggregate({"a": (2, {"w": values.T}), "b": (1, {"w": np.ascontiguousarray(values.T)})}, FLOAT32)["w"]
    assert (turned == values.T).all()


def test_updates_are_not_changed():
    update = tensors(1, 2)
    aggregate({"a": (3, update), "b": (1, tensors(0, 0))}, FLOAT32)
    assert update["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({}, "no update"),
        ({"a": (0, tensors(1))}, "'a' reports 0 examples"),
        ({"a": (2, tensors(1)), "b": (-1, tensors(1))}, "'b' reports -1 examples"),
        ({"a": (1, tensors(1)), "b": (1, {"v": np.zeros(1)})}, "in one update only"),
        ({"a": (1, tensors(1)), "b": (1, {})}, "'w' is in one update only"),
        (
            {"a": (1, tensors(1)), "b": (1, tensors(1, 2))},
            r"'w' is \(1,\) in 'a' and \(2,\) in 'b'",
        ),
    ],
)
def test_updates_that_do_not_fit_are_refused(updates, message):
    with pytest.raises(ValueError, match=message):
        aggregate(updates, FLOAT32)
