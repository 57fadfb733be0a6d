"""Several algorithms along one federated trajectory end with the bits of separate runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tap_core.algorithms.participant import Participant
from tap_core.foundations import load_foundation
from tap_core.model.tap_model import build_model
from tap_core.settings.runtime import Runtime
from tap_core.simulation.in_process import simulate, simulate_all

Make = Callable[..., Any]
DEVICES = {"both": ("colour", "letters"), "painter": ("colour",), "reader": ("letters",)}
TABLES: dict[str, Any] = {"training": {"decision_set": "always", "steps": 2}, "rounds": {"total": 2}}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "alone": {"name": "local", "steps": 3},
    "tap": {"distillation": {"steps": 2}},
    "average": {"name": "fedavg"},
    "tuned": {"name": "fedavg_finetune", "steps": 3, "patience": 2},
}


@pytest.fixture(scope="module")
def world(mini_config: Make, mini_examples: Make) -> Any:
    """The settings by name, and a function that gives fresh participants of one of them."""
    configs = {name: mini_config(**TABLES, algorithm=table) for name, table in ALGORITHMS.items()}
    foundation = load_foundation(configs["tap"].foundation)

    def participants(name: str) -> dict[str, Participant]:
        config, made = configs[name], {}
        for seed, (device, tasks) in enumerate(DEVICES.items()):
            data = {task: mini_examples(task, seed=seed, decision=6) for task in tasks}
            model = build_model(config, config.tasks_named(tasks), foundation)
            made[device] = Participant(config, device, model, data, Runtime(device="cpu", threads=1))
        return made

    start = build_model(configs["tap"], configs["tap"].tasks_named(("colour", "letters")), foundation)
    return configs, participants, start.state("federated")


def equal(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(np.array_equal(one[c][k], other[c][k]) for c in one for k in one[c])


@pytest.fixture(scope="module")
def together(world: Any) -> Any:
    configs, participants, start = world
    return simulate_all(configs, participants("tap"), start)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_along_the_trajectory_is_the_algorithm_alone(world: Any, together: Any, name: str) -> None:
    configs, participants, start = world
    alone = simulate(configs[name], participants(name), start)
    for device, outcome in alone.devices.items():
        along = together[name].devices[device]
        assert equal(along.state.personal, outcome.state.personal), device
        assert along.state.personal_loss == outcome.state.personal_loss
        for task, result in outcome.results.items():
            assert along.results[task].personal == result.personal
    if name != "alone":
        assert equal(together[name].components, alone.components)


def test_the_algorithms_end_with_different_models(together: Any) -> None:
    ends = [result.devices["both"].state.personal for result in together.values()]
    assert not any(equal(one, other) for i, one in enumerate(ends) for other in ends[:i])


def test_settings_that_differ_elsewhere_are_refused(world: Any, mini_config: Make) -> None:
    configs, participants, start = world
    with pytest.raises(ValueError, match="more than the algorithm"):
        simulate_all({"tap": configs["tap"], "other": mini_config()}, participants("tap"), start)
