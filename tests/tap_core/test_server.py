"""FedOpt at the server against its equations in plain Python, and the simulation with it."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tap_core.server import advance
from tap_core.settings.federation import RoundsConfig

OPTIONS: dict[str, Any] = {"server_rate": 0.3, "server_momentum": 0.8, "server_second": 0.7, "server_epsilon": 0.05}


@pytest.mark.parametrize("server", ["momentum", "adam"])
def test_three_rounds_are_those_of_the_equations(server: str) -> None:
    settings = RoundsConfig(server=server, **OPTIONS)
    random = np.random.default_rng(3)
    start = random.normal(size=(4, 3)).astype(np.float32)
    averages = random.normal(size=(3, 4, 3)).astype(np.float32)
    W, moments = start, None
    for average in averages:
        W, moments = advance(average, W, moments, settings)
    assert moments is not None and moments.shape == (2, 4, 3) and W.dtype == moments.dtype == np.float32
    for place in np.ndindex(start.shape):
        w, m, v = float(start[place]), 0.0, 0.05**2
        for average in averages:
            change = float(average[place]) - w
            if server == "momentum":
                m = 0.8 * m + change
                w += 0.3 * m
            else:
                m, v = 0.8 * m + 0.2 * change, 0.7 * v + 0.3 * change**2
                w += 0.3 * m / (math.sqrt(v) + 0.05)
        assert W[place] == pytest.approx(w, abs=1e-6) and moments[0][place] == pytest.approx(m, abs=1e-6)


def test_momentum_without_memory_at_rate_one_is_the_average() -> None:
    settings = RoundsConfig(server="momentum", server_momentum=0)
    average, current = (np.arange(6, dtype=np.float32) * k for k in (0.1, 0.7))
    new, moments = advance(average, current, None, settings)
    assert np.allclose(new, average, atol=1e-7) and np.array_equal(advance(average, current, moments, settings)[0], new)


def test_values_keep_their_dtype_and_whole_and_parts_agree() -> None:
    """The coordinator steps over a component's values in one row, the simulator tensor by tensor."""
    settings = RoundsConfig(server="adam", **OPTIONS)
    values = np.random.default_rng(1).normal(size=(2, 12)).astype(ml_dtypes.bfloat16)
    whole, moments = advance(values[0], values[1], None, settings)
    assert whole.dtype == ml_dtypes.bfloat16
    for part in (slice(0, 5), slice(5, 12)):
        new, held = advance(values[0][part], values[1][part], None, settings)
        assert np.array_equal(new, whole[part]) and np.array_equal(held, moments[:, part])
