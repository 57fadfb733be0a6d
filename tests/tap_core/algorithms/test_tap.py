"""TAP on held-out examples: what fires, what is taken over, when training ends, and what answers at the end.

Most tests switch training off with a learning rate of nearly nothing, so that what is decided is all that is seen.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tap_core.algorithms.base import DeviceState, mixed
from tap_core.algorithms.participant import Participant
from tap_core.algorithms.replacement import groups
from tap_core.components import components_of_task
from tap_core.errors import UsageError
from tap_core.model.encoders import AdaptedEncoder
from tap_core.settings.runtime import Runtime
from tap_core.training.patience import EVERY, Patience

Make = Callable[..., Any]
CPU = Runtime(device="cpu", threads=1)
STILL = {"training": {"learning_rate": 1e-12}}
TASKS = ("colour", "letters")


@pytest.fixture
def participant(mini_config: Make, mini_model: Make, mini_examples: Make) -> Make:
    def make(*tasks: str, decision: int = 12, **tables: Any) -> Participant:
        config = mini_config(**tables)
        data = {task: mini_examples(task, decision=decision) for task in tasks}
        return Participant(config, "d", mini_model(*tasks, **tables), data, CPU)

    return make


def noise(tensors: Any, seed: int = 1, size: float = 0.1) -> Any:
    random = np.random.default_rng(seed)
    return {
        c: {k: (v + random.normal(0, size, v.shape)).astype(np.float32) for k, v in sorted(g.items())}
        for c, g in sorted(tensors.items())
    }


def close(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(np.allclose(a[c][k], b[c][k], atol=1e-6) for c in a for k in a[c])


def losses(device: Participant, tensors: Any) -> dict[str, np.ndarray]:
    """Of each decision example by task."""
    device.model.load("personal", tensors)
    local = device._local(None)
    return {task.name: local.losses("personal", task) for task in local.tasks}


def learnt(device: Participant) -> Any:
    """A set that knows the tasks, from plain training."""
    local = device._local(None)
    local.train("personal", "learning", steps=40, learning_rate=1e-2)
    return device.model.state("personal")


def state(personal: Any, tasks: Any = TASKS) -> DeviceState:
    return DeviceState(3, personal, {}, dict.fromkeys(tasks, 0.5), rounds=1)


def test_the_untrained_layers_see_each_held_out_example_once(participant: Make, monkeypatch: Any) -> None:
    device = participant(*TASKS, lora={"encoder_layers": 1})
    local = device._local(None)
    alone = replace(local, resources=None)
    local.train("personal", "learning", steps=10, learning_rate=1e-2)  # the training examples' places are taken
    wanted = {task.name: alone.losses("personal", task) for task in local.tasks}
    seen: list[int] = []
    original = AdaptedEncoder.prefix
    monkeypatch.setattr(AdaptedEncoder, "prefix", lambda s, i, m: (seen.append(len(i)), original(s, i, m))[1])
    for _ in range(2):
        for task in local.tasks:
            assert np.allclose(local.losses("personal", task), wanted[task.name], rtol=1e-5)
    assert sum(seen) == sum(len(device.data[task].decision) for task in TASKS)


def test_paired_takes_over_what_is_better_on_held_out_examples_whatever_training_says(participant: Make) -> None:
    device = participant(*TASKS, algorithm={"decision": "paired"}, **STILL)
    good = learnt(device)
    bad = noise(good, size=0.5)
    for received, personal, fires in ((good, bad, True), (bad, good, False)):
        outcome = device.take_part(4, received, state(personal))
        assert outcome.report.replaced == dict.fromkeys(TASKS, fires)
        assert close(outcome.state.personal, good)


def test_the_gradient_decides_each_component_by_itself(participant: Make) -> None:
    device = participant("colour", algorithm={"decision": "paired", "indicator": "gradient", "k": 0}, **STILL)
    personal = noise(device.model.state("personal"))
    step = noise(personal, seed=2, size=0.01)
    outcome = device.take_part(4, step, state(personal, ("colour",)))
    took = set(outcome.report.replaced_components)
    assert 0 < len(took) < len(personal) and outcome.report.replaced == {"colour": True}
    assert close(outcome.state.personal, {c: (step if c in took else personal)[c] for c in personal})
    (task,) = device.tasks
    device.model.load("federated", step)
    device.model.load("personal", personal)
    gains = device.algorithm.indicator.gains(device._local(None), task)
    assert took == {c for c, gain in gains.items() if gain.mean() > 0}


def test_soft_replacement_takes_the_mixture_with_the_least_decision_loss(participant: Make) -> None:
    device = participant(*TASKS, algorithm={"decision": "always", "replacement": "soft"}, **STILL)
    base = learnt(device)
    ours, theirs = noise(base, 1), noise(base, 2)
    outcome = device.take_part(4, theirs, state(ours))
    shares = outcome.report.shares
    of_groups = groups(device.tasks, device.model.components)
    assert set(of_groups) == {("colour",), ("letters",), TASKS} and set(shares) == set(device.model.components)
    now = ours
    for users, names in of_groups.items():
        assert {shares[name] for name in names} == {shares[names[0]]}
        before = losses(device, now)
        scores = {}
        for share in (0, 0.25, 0.5, 0.75, 1):
            after = losses(device, {**now, **mixed({n: ours[n] for n in names}, theirs, share)})
            scores[share] = np.mean([after[task].mean() / before[task].mean() for task in users])
        assert shares[names[0]] == min(scores, key=scores.__getitem__)
        now = {**now, **mixed({n: ours[n] for n in names}, theirs, shares[names[0]])}
    assert close(outcome.state.personal, now)
    assert set(outcome.report.replaced_components) == {name for name, share in shares.items() if share > 0}
    assert any(0 < share < 1 for share in shares.values())  # the mean of two noises round one good set


def test_soft_replacement_of_a_worse_set_takes_nothing(participant: Make) -> None:
    device = participant("colour", algorithm={"decision": "always", "replacement": "soft"}, **STILL)
    good = learnt(device)
    outcome = device.take_part(4, noise(good, size=2.0), state(good, ("colour",)))
    assert outcome.report.replaced_components == () and close(outcome.state.personal, good)


def test_without_stage_1_there_is_no_personal_set_and_stage_2_starts_from_the_global_one(participant: Make) -> None:
    device = participant("colour", algorithm={"stage1": False})
    received = device.model.state("federated")
    outcome = device.take_part(0, received, DeviceState.initial(("colour",)))
    assert outcome.state.personal == {} and outcome.report.personal_loss == {}
    assert outcome.state.personal_loss == {"colour": math.inf}
    other = noise(received)
    end = device.finish(other, outcome.state)
    never = device.finish(other, DeviceState.initial(("colour",)))
    assert close(end.state.personal, never.state.personal)


def test_each_task_selects_what_answers_for_it(participant: Make) -> None:
    """x_i knows letters and the global set colours: each task has its own choice, and is measured with it."""
    tables: dict[str, Any] = {"algorithm": {"selection": True, "distillation": {"learning_rate": 1e-12}}, **STILL}
    device = participant(*TASKS, **tables)
    good = learnt(device)
    mine = {
        task.name: set(components_of_task(task)) - set(components_of_task(other))
        for task, other in zip(device.tasks, reversed(device.tasks), strict=True)
    }
    spoilt = noise(good, size=1.0)
    received = {c: (spoilt if c in mine["letters"] else good)[c] for c in good}
    personal = {c: (spoilt if c in mine["colour"] else good)[c] for c in good}
    end = device.finish(received, state(personal))
    assert end.state.selected == {"colour": "received", "letters": "stage1"}
    assert set(end.state.candidates) == {"received", "stage1"}
    assert close(end.state.personal_for("colour"), received) and close(end.state.personal_for("letters"), personal)
    assert end.results["colour"].personal == end.results["colour"].federated
    assert end.results["letters"].personal == end.results["letters"].stage1
    assert [end.results[task].selected for task in TASKS] == ["received", "stage1"]
    for task in TASKS:
        chosen, simplest = (losses(device, s)[task] for s in (end.state.personal_for(task), received))
        assert chosen.mean() <= simplest.mean()


@pytest.mark.parametrize(("by", "chosen"), [("loss", "stage1"), ("error", "received")])
def test_selection_is_by_what_the_settings_name(participant: Make, by: str, chosen: str) -> None:
    """The received set answers as the personal one does, and is hardly sure of it: more loss, and no more errors."""
    tables = {"selection": True, "selection_by": by, "distillation": {"steps": 0}}
    device = participant("colour", algorithm=tables, decision=40)
    good = learnt(device)
    head = good["decoder/colour"]
    unsure = {key: value * 1e-2 if key.startswith("outer") else value for key, value in head.items()}
    end = device.finish({**good, "decoder/colour": unsure}, state(good, ("colour",)))
    assert end.state.selected.get("colour", "stage1") == chosen


def test_selection_may_choose_a_mean(participant: Make) -> None:
    """Teacher and personal set are two noises round one good set."""
    device = participant("colour", algorithm={"selection": True, "distillation": {"learning_rate": 1e-12}}, decision=60)
    good = learnt(device)
    end = device.finish(noise(good, 1, 0.2), state(noise(good, 2, 0.2), ("colour",)))
    name = end.state.selected["colour"]
    assert name.startswith("mean-")
    wanted = mixed(noise(good, 2, 0.2), noise(good, 1, 0.2), float(name.removeprefix("mean-")))
    assert close(end.state.candidates[name], wanted)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_student_starts_between_the_personal_set_and_the_teacher(participant: Make, share: float) -> None:
    device = participant("colour", algorithm={"distillation": {"learning_rate": 1e-12, "teacher_share": share}})
    received = noise(device.model.state("federated"), 1)
    mine = noise(received, 2)
    end = device.finish(received, state(mine, ("colour",)))
    assert close(end.state.personal, mixed(mine, received, share))


def test_the_teacher_may_have_its_own_steps_and_rate(participant: Make) -> None:
    settings = {"steps": 3, "teacher_steps": 7, "learning_rate": 1e-12, "teacher_learning_rate": 1e-2}
    device, steps = participant("colour", algorithm={"distillation": {**settings, "teacher_share": 1.0}}), []
    received = device.model.state("federated")
    end = device.finish(received, state(received, ("colour",)), lambda phase, step, of: steps.append((phase, step, of)))
    assert steps == [("teacher", n + 1, 7) for n in range(7)] + [("student", n + 1, 3) for n in range(3)]
    local = device._local(None)
    device.model.load("federated", received)
    local.train("federated", "teacher", "stage 2", steps=7, learning_rate=1e-2)
    assert close(end.state.personal, device.model.state("federated")) and not close(end.state.personal, received)


def test_teacher_and_student_may_end_with_their_means(participant: Make) -> None:
    ends = {}
    for average in (False, True):
        settings = {"steps": 4, "learning_rate": 1e-2, "teacher_share": 1.0, "average": average}
        device, values = participant("colour", algorithm={"distillation": settings}), []
        received = device.model.state("federated")

        def seen(phase: str, step: int, of: int, device: Any = device, values: Any = values) -> None:
            values.append((phase, device.model.state("federated" if phase == "teacher" else "personal")))

        end = device.finish(received, state(received, ("colour",)), seen)
        students = [value for phase, value in values if phase == "student"]
        ends[average] = end.state.personal
        mean = {c: {k: np.mean([v[c][k] for v in students], axis=0) for k in g} for c, g in received.items()}
        assert close(end.state.personal, mean if average else students[-1])
    assert not close(*ends.values())


def test_a_task_whose_teacher_is_worse_is_not_taught(participant: Make) -> None:
    """The teacher knows letters alone: colour ends as with a beta of 0, letters does not."""
    ends = {}
    for name, beta, skip in (("skip", 5.0, True), ("none", 0.0, False), ("all", 5.0, False)):
        settings = {"learning_rate": 1e-3, "skip_worse": skip, "beta": {"image_classification": beta}}
        device = participant(*TASKS, algorithm={"distillation": settings})
        good = learnt(device)
        decoder = {"decoder/colour": noise(good, size=5.0)["decoder/colour"]}
        ends[name] = device.finish({**good, **decoder}, state(good)).state.personal
    assert close(ends["skip"], ends["none"]) and not close(ends["skip"], ends["all"])


def test_patience_ends_a_phase_with_its_best_values(participant: Make) -> None:
    device = participant("colour")
    values = [noise(device.model.state("personal"), seed) for seed in range(6)]
    scores = iter([1.0, 0.5, 0.7, 0.6, 0.9, 0.1])
    watch: Patience | None = None
    for number, value in enumerate(values):
        device.model.load("personal", value)
        if watch is None:
            watch = Patience(lambda: next(scores), device.model, "personal", 3 * EVERY, 100)
            assert not any(watch(step) for step in range(1, EVERY))  # not looked at in between
        elif watch(number * EVERY):
            break
    assert number == 4 and watch is not None
    device.model.load("personal", values[0])
    watch.restore()
    assert close(device.model.state("personal"), values[1])


def test_patience_looks_at_the_decision_set_and_counts_the_start(participant: Make) -> None:
    """A learning rate that spoils the set: it ends early, as it began."""
    settings = {"steps": 40, "learning_rate": 3.0, "patience": EVERY}
    device = participant("colour", algorithm={"distillation": settings})
    good, steps = learnt(device), []
    end = device.finish(good, state(good, ("colour",)), lambda phase, step, of: steps.append((phase, step)))
    assert close(end.state.personal, good)
    assert max(step for phase, step in steps if phase == "student") == EVERY


def test_settings_that_need_a_decision_set_are_refused_without_one(participant: Make) -> None:
    for settings in ({"decision": "paired"}, {"selection": True}, {"distillation": {"patience": 5}}):
        with pytest.raises(UsageError, match="decides on held-out examples; task 'colour' has none"):
            participant("colour", decision=0, algorithm=settings)
