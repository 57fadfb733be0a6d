"""The mean of a set's values over a phase."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tap_core.algorithms.participant import Participant
from tap_core.settings.runtime import Runtime
from tap_core.training.averaging import IterateMean

Make = Callable[..., Any]


def test_the_set_gets_the_mean_of_its_values_after_each_step(mini_model: Make) -> None:
    model = mini_model("colour")
    start = model.state("personal")
    mean = IterateMean(model, "personal")
    for step, size in enumerate((1.0, 2.0, 6.0), 1):
        model.load("personal", {c: {k: v + np.float32(size) for k, v in group.items()} for c, group in start.items()})
        assert mean(step) is False
    mean.restore()
    now = model.state("personal")
    assert all(np.allclose(now[c][k], start[c][k] + 3, atol=1e-5) for c in start for k in start[c])


def test_without_a_step_nothing_changes(mini_model: Make) -> None:
    model = mini_model("colour")
    before = model.state("personal")
    IterateMean(model, "personal").restore()
    after = model.state("personal")
    assert all(np.array_equal(after[c][k], before[c][k]) for c in before for k in before[c])


def test_a_phase_may_end_with_its_mean(mini_config: Make, mini_model: Make, mini_examples: Make) -> None:
    """Training is the same; what it ends with is not. With patience the steps up to its end count."""
    for patience in (0, 5):
        data = {"colour": mini_examples("colour", decision=12)}
        device = Participant(mini_config(), "d", mini_model("colour"), data, Runtime(device="cpu", threads=1))
        values: list[Any] = []

        def seen(phase: str, step: int, of: int, device: Any = device, values: Any = values) -> None:
            values.append(device.model.state("personal"))

        start = device.model.state("personal")
        device._local(seen).train("personal", "p", steps=8, learning_rate=1e-2, patience=patience, average=True)
        now = device.model.state("personal")
        assert len(values) == 8
        for c in now:
            for k in now[c]:
                assert np.allclose(now[c][k], np.mean([value[c][k] for value in values], axis=0), atol=1e-5)
        assert any(not np.allclose(now[c][k], values[-1][c][k]) for c in now for k in now[c])
        device.model.load("personal", start)
        device._local(None).train("personal", "p", steps=8, learning_rate=1e-2)
        again = device.model.state("personal")
        assert all(np.array_equal(again[c][k], values[-1][c][k]) for c in again for k in again[c])
