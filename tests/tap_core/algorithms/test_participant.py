"""One device's part of the method, step by step, and the whole of it in one process."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tap_core.aggregation import aggregate
from tap_core.algorithms.base import DeviceState
from tap_core.algorithms.participant import Participant
from tap_core.components import components_of_task, owned_components
from tap_core.errors import UsageError
from tap_core.foundations.preprocessor import Preprocessor
from tap_core.settings.runtime import Runtime
from tap_core.simulation.in_process import simulate

Make = Callable[..., Any]
CPU = Runtime(device="cpu", threads=1)


@pytest.fixture
def participant(mini_config: Make, mini_model: Make, mini_examples: Make) -> Make:
    def make(device: str, *tasks: str, **tables: Any) -> Participant:
        config = mini_config(**tables)
        data = {task: mini_examples(task, seed=len(device)) for task in tasks}
        return Participant(config, device, mini_model(*tasks, **tables), data, CPU)

    return make


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in a)


def test_a_metric_that_cannot_be_had_is_said_before_training(participant: Make, tmp_path: Path) -> None:
    tables = {"evaluation": {"bert_model": str(tmp_path / "nowhere")}}
    with pytest.raises(UsageError, match=r"^evaluation\.bert_model"):
        participant("asker", "ask", **tables)
    participant("reader", "letters", **tables)


def test_the_first_participation_replaces_everything(participant: Make) -> None:
    device = participant("d", "colour", "letters")
    outcome = device.take_part(0, device.model.state("federated"), DeviceState.initial(("colour", "letters")))
    assert outcome.report.replaced == {"colour": True, "letters": True}
    assert outcome.report.replaced_components == device.model.components
    assert outcome.state.round == 0 and set(outcome.state.personal) == set(device.model.components)
    assert outcome.update.examples["encoder/image"] == 20 and outcome.update.examples["mome/attention/shared"] == 40


def test_trap_4_a_replacement_changes_exactly_the_components_of_its_task(participant: Make) -> None:
    """Personal training is switched off by a learning rate of nearly nothing, so that only replacement moves x_i."""
    for policy in ("all", "any"):
        device = participant(
            "d", "colour", "letters", algorithm={"shared_replacement": policy}, training={"learning_rate": 1e-12}
        )
        received = device.model.state("federated")
        personal = {c: {k: v + 1 for k, v in group.items()} for c, group in received.items()}
        state = DeviceState(3, personal, {}, {"colour": math.inf, "letters": -math.inf})
        outcome = device.take_part(4, received, state)
        assert outcome.report.replaced == {"colour": True, "letters": False}
        colour, letters = (set(components_of_task(device.model.tasks[t])) for t in ("colour", "letters"))
        wanted = colour - letters if policy == "all" else colour
        for name, group in outcome.state.personal.items():
            source = received if name in wanted else personal
            assert all(np.allclose(group[k], source[name][k], atol=1e-6) for k in group), name
        assert set(outcome.report.replaced_components) == wanted


def test_no_trigger_keeps_the_personal_set(participant: Make) -> None:
    device = participant("d", "colour", training={"learning_rate": 1e-12})
    received = device.model.state("federated")
    personal = {c: {k: v + 1 for k, v in group.items()} for c, group in received.items()}
    outcome = device.take_part(1, received, DeviceState(0, personal, {}, {"colour": -math.inf}))
    assert outcome.report.replaced_components == ()
    assert all(
        np.allclose(outcome.state.personal[c][k], personal[c][k], atol=1e-6) for c in personal for k in personal[c]
    )


def test_the_update_is_the_federated_set_and_the_personal_set_differs(participant: Make) -> None:
    device = participant("d", "ask")
    outcome = device.take_part(0, device.model.state("federated"), DeviceState.initial(("ask",)))
    assert set(outcome.update.components) == set(owned_components(device.tasks))
    different = [
        c for c in outcome.update.components if not same(outcome.update.components[c], outcome.state.personal[c])
    ]
    assert set(different) == set(outcome.update.components)


def test_every_phase_device_and_round_draws_its_own_examples(
    participant: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/method.md section 4, step 4: x_i trains on batches drawn with another seed than w_i's in step 2."""
    drawn: dict[str, list[int]] = {}
    where: dict[int, int] = {}
    batch = Preprocessor.batch

    def spy(self: Preprocessor, task: Any, examples: Any) -> Any:
        drawn.setdefault(task.name, []).extend(where[id(example)] for example in examples)
        return batch(self, task, examples)

    monkeypatch.setattr(Preprocessor, "batch", spy)
    orders: dict[str, list[list[int]]] = {"colour": [], "letters": []}

    def collect(phase: str, step: int, steps: int) -> None:
        if step == steps:
            phases.append(phase)
            for task, rows in drawn.items():
                orders[task].append(rows)
            drawn.clear()

    phases: list[str] = []
    for name in ("d", "e"):  # equally long names: the fixture gives both devices the same examples
        device = participant(name, "colour", "letters")
        where.update({id(e): index for split in device.data.values() for index, e in enumerate(split.train)})
        for round_number in (0, 1):
            received = device.model.state("federated")
            device.take_part(round_number, received, DeviceState.initial(("colour", "letters")), collect)
    assert phases == ["federated", "personal"] * 4
    for task, rows in orders.items():
        assert [len(row) for row in rows] == [9] * 8, task  # three steps, half of a batch of six
        assert len({tuple(row) for row in rows}) == 8, task


def test_a_round_is_a_function_of_its_arguments(participant: Make) -> None:
    first, second = participant("d", "colour", "ask"), participant("d", "colour", "ask")
    received = first.model.state("federated")
    start = DeviceState.initial(("ask", "colour"))
    warm = first.take_part(0, received, start)
    again = first.take_part(0, received, start)  # the model was used in between
    fresh = second.take_part(0, received, start)
    for outcome in (again, fresh):
        assert all(same(outcome.state.personal[c], warm.state.personal[c]) for c in received)
        assert all(same(outcome.update.components[c], warm.update.components[c]) for c in received)
        assert outcome.report.personal_loss == warm.report.personal_loss


def test_a_cancelled_round_leaves_the_state_as_it_was(participant: Make) -> None:
    device = participant("d", "colour")
    received, state = device.model.state("federated"), DeviceState.initial(("colour",))

    def cancel(phase: str, step: int, steps: int) -> None:
        if (phase, step) == ("personal", 2):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        device.take_part(0, received, state, cancel)
    after = device.take_part(0, received, state)
    wanted = participant("d", "colour").take_part(0, received, state)
    assert all(same(after.state.personal[c], wanted.state.personal[c]) for c in received)


def test_the_wire_dtype_is_the_updates(participant: Make) -> None:
    device = participant("d", "colour", wire={"dtype": "bfloat16"})
    outcome = device.take_part(0, device.model.state("federated"), DeviceState.initial(("colour",)))
    assert {v.dtype.name for g in outcome.update.components.values() for v in g.values()} == {"bfloat16"}
    assert {v.dtype.name for g in outcome.state.personal.values() for v in g.values()} == {"float32"}


def test_finish_measures_every_task_and_keeps_samples(participant: Make) -> None:
    tasks = ("colour", "letters", "redraw", "ask")
    device = participant("d", *tasks)
    received = device.model.state("federated")
    state = device.take_part(0, received, DeviceState.initial(tasks)).state
    outcome = device.finish(received, state)
    assert outcome.state.finished and set(outcome.results) == set(tasks)
    for name, result in outcome.results.items():
        assert result.n_test == 8 and all(math.isfinite(v) for v in (result.floor, result.federated, result.personal))
        assert len(outcome.samples[name]) == 6
        assert set(outcome.samples[name][0]) == {"input", "target", "federated", "personal"}
    assert outcome.results["redraw"].higher_is_better is False
    assert outcome.samples["redraw"][0]["personal"].startswith("data:image/png;base64,")
    assert not all(same(outcome.state.personal[c], state.personal[c]) for c in received)


def test_simulation_aggregates_exactly_the_updates_of_the_sampled_devices(
    participant: Make, mini_config: Make, mini_model: Make
) -> None:
    devices = {
        "d1": participant("d1", "colour"),
        "d22": participant("d22", "colour", "letters"),
        "d333": participant("d333", "ask"),
    }
    config = mini_config(rounds={"min_cohort": 1})
    seen: list[Any] = []
    start = mini_model().state("federated")
    result = simulate(config, devices, start, on_round=lambda t, outcomes: seen.append((t, dict(outcomes))))
    assert [t for t, _ in seen] == [0, 1, 2] and all(len(outcomes) == 2 for _, outcomes in seen)
    expected = dict(start)
    for _, outcomes in seen:
        for name in start:
            owners = {
                d: (o.update.examples[name], o.update.components[name])
                for d, o in outcomes.items()
                if name in o.update.components
            }
            if owners:
                expected[name] = aggregate(owners, np.dtype(np.float32))
    assert all(same(result.components[c], expected[c]) for c in expected)
    never_owned = "decoder/redraw"
    assert same(result.components[never_owned], start[never_owned])
    assert set(result.devices) == set(devices)


def test_what_stays_at_home_is_kept_and_not_sent(participant: Make) -> None:
    device = participant("d", "colour", wire={"dtype": "bfloat16"})
    received, tasks = device.model.state("federated"), ("colour",)
    everything = device.take_part(0, received, DeviceState.initial(tasks)).update
    home = dict.fromkeys(("decoder/colour", "encoder/image"), 0)
    outcome = device.take_part(0, received, DeviceState.initial(tasks), home=home)
    sent = {*everything.components} - {*home}
    assert set(outcome.update.components) == set(outcome.update.examples) == sent and set(outcome.state.home) == {*home}
    for name, group in everything.components.items():
        assert same((outcome.state.home if name in home else outcome.update.components)[name], group)


def test_a_component_at_home_starts_from_its_own_value_unless_the_coordinators_is_newer(participant: Make) -> None:
    """Training is switched off by a learning rate of nearly nothing, so that what comes out is what went in."""
    device = participant("d", "colour", training={"learning_rate": 1e-12})
    received = device.model.state("federated")
    own = {c: {k: v + 1 for k, v in received[c].items()} for c in ("decoder/colour", "encoder/image")}
    state = DeviceState(3, received, {}, {"colour": math.inf}, home=own)
    home = {"decoder/colour": 3, "encoder/image": 4, "mote/attention/image": 0}  # version 4 is what round 3 made
    kept = device.take_part(5, received, state, home=home).state.home
    assert set(kept) == set(home)
    for name, wanted in {**received, "decoder/colour": own["decoder/colour"]}.items():
        if name in home:
            assert all(np.allclose(kept[name][k], wanted[k], atol=1e-6) for k in wanted), name
    assert "decoder/colour" not in device.take_part(5, received, state).state.home  # federated now: forgotten


def test_stage_2_learns_from_the_value_at_home(participant: Make) -> None:
    device = participant("d", "colour", algorithm={"distillation": {"steps": 0}})
    received = device.model.state("federated")
    home = dict.fromkeys(received, 0)
    state = device.take_part(0, received, DeviceState.initial(("colour",)), home=home).state
    at_home, global_model = (device.finish(received, state, home=told).results["colour"] for told in (home, {}))
    wanted = device.finish(state.home, state).results["colour"]
    assert at_home == wanted and at_home != global_model
