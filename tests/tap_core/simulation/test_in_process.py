"""The whole method in one process: what is averaged, what stays at home, and what happens when owners come and go."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tap_core.aggregation import aggregate
from tap_core.algorithms.participant import LocalUpdate, Participant
from tap_core.components import owned_components
from tap_core.settings.runtime import Runtime
from tap_core.simulation.in_process import next_components, simulate

Make = Callable[..., Any]
TASKS = {"asker": ("ask",), "painter": ("colour",), "reader": ("letters",)}


class Recorded(Participant):
    """A participant that notes what it is given."""

    given: dict[tuple[int, str], Any]

    def federate(self, round_number: int, received: Any, *args: Any, home: Any = None, **more: Any) -> Any:
        self.given.setdefault((round_number, self.device), (received, home))
        return super().federate(round_number, received, *args, home=home, **more)


class World:
    """Three devices, of which every component of all is three's, encoder/text two's, and the decoders one's each."""

    def __init__(self, mini_config: Make, mini_model: Make, mini_examples: Make, **rounds: Any) -> None:
        tables: dict[str, Any] = {
            "rounds": {"total": 4, "clients_per_round": 3, **rounds},
            "wire": {"dtype": "float16"},
        }
        self.config = mini_config(**tables)
        runtime = Runtime(device="cpu", threads=1)
        self.participants = {}
        self.given: dict[tuple[int, str], Any] = {}
        """(received, home) by round and device."""
        for device, tasks in TASKS.items():
            data = {task: mini_examples(task, seed=len(device)) for task in tasks}
            self.participants[device] = Recorded(self.config, device, mini_model(*tasks, **tables), data, runtime)
            self.participants[device].given = self.given
        state = mini_model(**tables).state("federated")
        self.version_0 = {c: {k: v.astype(np.float16) for k, v in group.items()} for c, group in state.items()}
        self.rounds: list[dict[str, Any]] = []

    def run(self, **options: Any) -> Any:
        def on_round(_: int, outcomes: Any) -> None:
            self.rounds.append(dict(outcomes))

        return simulate(self.config, self.participants, self.version_0, on_round=on_round, **options)


@pytest.fixture
def world(mini_config: Make, mini_model: Make, mini_examples: Make) -> Make:
    return lambda **rounds: World(mini_config, mini_model, mini_examples, **rounds)


def same(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[key], b[key]) for key in a)


def test_with_a_cohort_of_two_nobody_sends_what_only_he_owns_and_all_ends_alike(world: Make) -> None:
    """One owner: the same mathematics without a byte leaving. So a cohort of one is the oracle of a cohort of two."""
    apart, open_ = world(min_cohort=2), world(min_cohort=1)
    at_home, averaged = apart.run(), open_.run()
    owners = {device: set(owned_components(p.tasks)) for device, p in apart.participants.items()}
    for device, names in owners.items():
        others = set().union(*(owned for other, owned in owners.items() if other != device))
        kept = names - others
        assert kept and f"decoder/{TASKS[device][0]}" in kept
        for outcomes in apart.rounds:
            assert set(outcomes[device].update.components) == names & others
        for name in names:
            assert same(at_home.devices[device].state.personal[name], averaged.devices[device].state.personal[name])
            final = at_home.devices[device].state.home if name in kept else at_home.components
            assert same(final[name], averaged.components[name])
            assert name not in kept or same(at_home.components[name], apart.version_0[name])
        assert at_home.devices[device].results == averaged.devices[device].results


def test_a_component_with_one_report_in_a_round_keeps_its_value(mini_config: Make) -> None:
    """Whoever owns it: its average would be that device's update."""
    config = mini_config(rounds={"min_cohort": 2})
    W = {name: {"w": np.zeros(2, np.float32)} for name in ("encoder/image", "encoder/text")}

    def outcome(*names: str) -> Any:
        sent = {name: {"w": np.ones(2, np.float32)} for name in names}
        return SimpleNamespace(update=LocalUpdate(0, dict.fromkeys(names, 5), sent))

    outcomes = {"a": outcome("encoder/image", "encoder/text"), "b": outcome("encoder/image")}
    assert list(next_components(W, outcomes, config)) == ["encoder/image"]


def test_one_that_is_not_sampled_keeps_its_value_at_home(world: Make) -> None:
    one = world(total=6, clients_per_round=2)
    one.run()
    turns = [t for t, outcomes in enumerate(one.rounds) if "asker" in outcomes]
    assert len(turns) >= 2 and turns[-1] - turns[0] > len(turns) - 1  # it sat out in between
    before, after = (one.rounds[t]["asker"].state.home["decoder/ask"] for t in (turns[0], turns[1]))
    assert not same(before, after)


def test_a_second_owner_makes_a_component_federated_from_version_0_on(world: Make) -> None:
    """encoder/text is the asker's alone until the reader comes in round 2."""
    name, one = "encoder/text", world()
    result = one.run(enrolled=lambda t: TASKS if t >= 2 else ("asker", "painter"))
    first, second, third, last = one.rounds
    assert all(name not in turn["asker"].update.components for turn in (first, second))
    assert not same(first["asker"].state.home[name], second["asker"].state.home[name])
    for device in ("asker", "reader"):
        received, home = one.given[2, device]
        assert name not in home and same(received[name], one.version_0[name])
        assert name not in third[device].state.home
    assert same(one.given[3, "asker"][0][name], mean(third, name)) and same(result.components[name], mean(last, name))
    assert set(third["asker"].state.personal) == set(second["asker"].state.personal)


def test_the_last_owner_goes_on_from_the_last_global_value(world: Make) -> None:
    """encoder/text is the asker's and the reader's until the reader leaves before round 2."""
    name, one = "encoder/text", world()
    result = one.run(enrolled=lambda t: TASKS if t < 2 else ("asker", "painter"))
    second, third, last = one.rounds[1:]
    received, home = one.given[2, "asker"]
    assert same(received[name], mean(second, name)) and home[name] == 2
    assert name not in third["asker"].update.components and name in third["asker"].state.home
    assert same(result.components[name], mean(second, name)) and set(result.devices) == {"asker", "painter"}
    assert same(result.devices["asker"].state.home[name], last["asker"].state.home[name])
    replayed = one.participants["asker"].take_part(2, received, second["asker"].state, home=without(home, name))
    assert same(third["asker"].state.home[name], replayed.update.components[name])  # as if it had been sent


def test_a_value_at_home_gives_way_to_what_others_have_made_meanwhile(world: Make) -> None:
    """The painter has encoder/image to itself, sits out while two others share it, and has it to itself again."""
    one = world(total=5, clients_per_round=2)
    others = {t: ("asker", "askers_twin") for t in (1, 2)}
    one.participants["askers_twin"] = one.participants["asker"]
    one.run(enrolled=lambda t: others.get(t, ("painter", "reader")))
    name = "encoder/image"
    alone, again = one.rounds[0]["painter"].state, one.rounds[3]["painter"].state
    received, home = one.given[3, "painter"]
    assert name in alone.home and home[name] == 3 and same(received[name], mean(one.rounds[2], name))
    replayed = one.participants["painter"].take_part(3, received, alone, home=without(home, name))
    assert same(again.home[name], replayed.update.components[name])


def without(home: Any, name: str) -> Any:
    return {other: version for other, version in home.items() if other != name}


def mean(outcomes: Any, name: str) -> Any:
    updates = {i: outcome.update for i, outcome in outcomes.items() if name in outcome.update.components}
    assert len(updates) >= 2
    return aggregate({i: (u.examples[name], u.components[name]) for i, u in updates.items()}, np.dtype(np.float16))
