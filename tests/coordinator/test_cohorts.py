"""Which components can have a single owner, and who is told so, once."""

import asyncio
from types import SimpleNamespace

import pytest

from coordinator.cohorts import Watch, single_owners, tasks_by_device, warning
from tap_core.components import components_of_task, owned_components
from tap_core.settings.federation import FederationConfig

IMAGES, TEXTS = {"kinds": 10}, {"senses": 30}


def config_of(min_cohort=1):
    tasks = {
        "kinds": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]},
        "shades": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]},
        "senses": {"kind": "text_classification", "inputs": ["text"], "classes": ["a", "b"]},
    }
    values = {"name": "fed", "foundation": "f", "tasks": tasks, "rounds": {"min_cohort": min_cohort}}
    return FederationConfig.model_validate(values)


def device(tasks=(), allowed=None, admitted=True):
    return SimpleNamespace(tasks=dict.fromkeys(tasks, 1), allowed_tasks=allowed, is_admitted=lambda at: admitted)


def test_with_two_owners_of_everything_or_a_cohort_of_two_there_is_none():
    config = config_of()
    assert single_owners(config, [config.tasks, config.tasks]) == ()
    assert single_owners(config_of(2), [["kinds"]]) == () and single_owners(config_of(2), []) == ()
    assert warning(config, [config.tasks, config.tasks]) is None


def test_components_with_one_owner_are_named():
    config = config_of()
    single = single_owners(config, [["kinds", "senses"], ["kinds"]])
    shared = set(components_of_task(config.tasks["kinds"]))
    assert set(single) == set(components_of_task(config.tasks["senses"])) - shared and "decoder/senses" in single
    assert set(single_owners(config, [["kinds"]])) == set(owned_components([config.tasks["kinds"]]))


def test_before_anybody_is_enrolled_it_is_what_one_task_alone_uses():
    single = single_owners(config_of(), [])
    assert {"decoder/kinds", "decoder/shades", "decoder/senses", "encoder/text"} <= set(single)
    assert "encoder/image" not in single  # two tasks see images


def test_a_device_counts_with_what_it_said_or_else_with_what_it_may_say():
    config = config_of()
    rows = [device(["kinds"]), device(allowed=("senses",)), device(), device(["senses"], admitted=False)]
    assert list(map(set, tasks_by_device(config, rows, 0.0))) == [{"kinds"}, {"senses"}, set(config.tasks)]


def test_the_warning_is_one_line_that_says_what_and_what_to_do():
    text = warning(config_of(), [["kinds", "senses"], ["kinds"]])
    assert "decoder/senses" in text and "decoder/kinds" not in text and "\n" not in text
    assert "min_cohort = 2" in text and "second device for senses;" in text


def test_the_same_warning_is_given_once():
    watch, one, two = Watch(config_of()), device(["kinds"]), device(["kinds"])
    assert watch.news([], 0.0) is None
    assert "decoder/kinds" in watch.news([one], 0.0) and watch.news([one], 0.0) is None
    assert watch.news([one, two], 0.0) is None and "decoder/kinds" in watch.news([one], 0.0)


@pytest.mark.parametrize("min_cohort", [1, 2])
def test_enroll_warns_on_standard_error_and_leaves_the_output_alone(federation, command, min_cohort):
    directory, _ = federation(min_cohort=min_cohort)
    first = command("enroll", "one", directory, "--task", "kinds", "--json")
    assert first.stdout.count("\n") == 1 and first.stdout.startswith("{")
    second = command("enroll", "two", directory, "--task", "kinds")
    if min_cohort == 2:
        assert first.stderr == second.stderr == ""
        return
    assert first.stderr.startswith("warning: ") and first.stderr.count("\n") == 1 and "decoder/kinds" in first.stderr
    assert second.stderr == ""
    assert "decoder/senses" in command("enroll", "three", directory, "--task", "senses").stderr


def test_serve_warns_when_it_starts_and_when_a_join_shows_it(federation, enroll, running, capfd):
    directory, manifest = federation(total=1)
    devices = [enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)]

    async def main():
        async with running(directory, manifest) as service:
            assert "single owners" not in capfd.readouterr().out  # both may still name every task
            await devices[0].connect(service.url)
            await devices[1].connect(service.url)
            await service.until(lambda: len(service.federation.machine.members) == 2)
            await asyncio.gather(*(device.hear() for device in devices))
        async with running(directory, manifest) as service:
            assert service.federation.machine.members == {"one", "two"}

    asyncio.run(main())
    lines = [line for line in capfd.readouterr().out.splitlines() if "single owners" in line]
    assert "decoder/senses" in lines[-2] and "decoder/senses" in lines[-1]  # at the join, and at the next start
