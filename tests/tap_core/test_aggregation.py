"""Aggregation: exact numbers, one rounding, and no dependence on the order of arrival, in each of its three ways."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_core.aggregation import aggregate, trimmed

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


def test_devices_are_summed_in_the_order_of_their_names():
    """In float64 too the order decides what is lost: 1e30 and -1e30 must meet before the 1 comes."""
    updates = {"c": (1, tensors(1)), "b": (1, tensors(-1e30)), "a": (1, tensors(1e30))}
    orders = [dict(sorted(updates.items())), updates, {name: updates[name] for name in "bca"}]
    assert [aggregate(order, FLOAT32)["w"].tolist() for order in orders] == [[np.float32(1 / 3)]] * 3


@given(
    values=st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(-1000, 1000)),
        min_size=1,
        max_size=6,
    ),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(DTYPES),
    how=st.sampled_from(["mean", "trimmed_mean", "median"]),
)
def test_order_of_arrival_does_not_change_a_bit(values, order, dtype, how):
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
    first, second = aggregate(updates, dtype, how), aggregate(dict(arrived), dtype, how)
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


def plain(how, trim, values):
    """The definition for the values of one place, in exact arithmetic."""
    ranked, n = sorted(map(Fraction, values)), len(values)
    if how == "median":
        middle = ranked[n // 2 : n // 2 + 1] if n % 2 else ranked[n // 2 - 1 : n // 2 + 1]
    else:
        count = max(1, int(Fraction(str(trim)) * n)) if n >= 3 else 0
        middle = ranked[count : n - count]
    return sum(middle) / len(middle)


@given(
    values=st.lists(
        st.tuples(st.integers(1, 10**6), st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3)),
        min_size=1,
        max_size=11,
    ),
    trim=st.sampled_from([0.05, 0.2, 0.34, 0.49]),
)
@pytest.mark.parametrize("how", ["trimmed_mean", "median"])
def test_trimmed_mean_and_median_are_the_nearest_floats_to_their_definition(how, values, trim):
    updates = {f"d{i}": (n, tensors(*row)) for i, (n, row) in enumerate(values)}
    expected = [np.float32(float(plain(how, trim, column))) for column in zip(*(row for _, row in values), strict=True)]
    assert aggregate(updates, FLOAT32, how, trim)["w"].tolist() == expected


def test_how_many_are_left_out_at_either_end():
    assert [trimmed(n, 0.2) for n in (1, 2, 3, 4, 5, 9, 10, 15)] == [0, 0, 1, 1, 1, 1, 2, 3]
    assert trimmed(100, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
    assert all(n - 2 * trimmed(n, 0.499) >= 1 for n in range(1, 200))


@pytest.mark.parametrize("how", ["trimmed_mean", "median"])
def test_what_one_device_says_is_bounded_by_what_the_others_say(how):
    """However large its values and its number of examples."""
    honest = {f"d{i}": (10, tensors(1 + i / 8, -1 - i / 8)) for i in range(3)}
    for value in (3e38, -3e38, 1e6):
        poisoned = aggregate({**honest, "evil": (10**12, tensors(value, -value))}, FLOAT32, how)["w"]
        assert 1 <= poisoned[0] <= 1.25 and -1.25 <= poisoned[1] <= -1
    assert abs(aggregate({**honest, "evil": (10**12, tensors(3e38, 0))}, FLOAT32)["w"][0]) > 1e38


def test_two_devices_are_averaged_alike_and_one_keeps_its_bits():
    two = {"a": (1, tensors(1, -3)), "b": (99, tensors(2, -4))}
    for how in ("trimmed_mean", "median"):
        assert aggregate(two, FLOAT32, how)["w"].tolist() == [1.5, -3.5]
        alone = tensors(-0.0, 0.1)
        assert aggregate({"a": (7, alone)}, FLOAT32, how)["w"].tobytes() == alone["w"].tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["trimmed_mean", "median"])
@pytest.mark.parametrize("size", [1, 2**15 // 5, 2**15 // 5 + 1, 50_003])
def test_blocks_of_sorted_values_do_not_show(how, size, dtype):
    random = np.random.default_rng(size)
    updates = {device: (1, {"w": random.normal(size=size).astype(dtype)}) for device in "abcde"}
    stacked = np.sort([update["w"].astype(np.float64) for _, update in updates.values()], axis=0)
    whole = stacked[2] if how == "median" else (stacked[1] + stacked[2] + stacked[3]) / 3
    one = aggregate({"a": (1, {"w": whole})}, dtype)["w"]  # rounded once
    assert aggregate(updates, dtype, how)["w"].tobytes() == one.tobytes()


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
