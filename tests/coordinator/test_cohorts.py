"""Which components stay at home, what changes when owners come and go, and what a cohort of one means, said once."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from websockets.exceptions import ConnectionClosed

from coordinator.cohorts import Watch, home_components, single_owners, statement, tasks_by_device
from protocol.codec import encode
from protocol.messages import Decline, Finish, Train
from tap_core.components import components_of_task, owned_components
from tap_core.settings.federation import FederationConfig

IMAGES, TEXTS = {"kinds": 10}, {"senses": 30}


def config_of(min_cohort=1, clients=3):
    tasks = {
        "kinds": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]},
        "shades": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]},
        "senses": {"kind": "text_classification", "inputs": ["text"], "classes": ["a", "b"]},
    }
    values = {
        "name": "fed",
        "foundation": "f",
        "tasks": tasks,
        "rounds": {"min_cohort": min_cohort, "clients_per_round": clients},
    }
    return FederationConfig.model_validate(values)


def device(tasks=(), allowed=None, admitted=True):
    return SimpleNamespace(tasks=dict.fromkeys(tasks, 1), allowed_tasks=allowed, is_admitted=lambda at: admitted)


def test_with_two_owners_of_everything_or_a_cohort_of_two_there_is_none():
    config = config_of()
    assert single_owners(config, [config.tasks, config.tasks]) == ()
    assert single_owners(config_of(2), [["kinds"]]) == () and single_owners(config_of(2), []) == ()
    assert statement(config, [config.tasks, config.tasks]) is None


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


def test_at_home_is_what_too_few_devices_own_also_what_nobody_owns():
    config = config_of(2)
    everything = set(owned_components(config.tasks.values()))
    assert home_components(config, []) == everything and home_components(config_of(1), [config.tasks]) == frozenset()
    kinds = set(owned_components([config.tasks["kinds"]]))
    assert home_components(config, [["kinds"], ["kinds", "shades"], ["senses"]]) == everything - kinds
    assert home_components(config_of(3), [["kinds"], ["kinds"]]) == everything


def test_a_device_counts_with_what_it_said_or_else_with_what_it_may_say():
    config = config_of()
    rows = [device(["kinds"]), device(allowed=("senses",)), device(), device(["senses"], admitted=False)]
    assert list(map(set, tasks_by_device(config, rows, 0.0))) == [{"kinds"}, {"senses"}, set(config.tasks)]


def test_the_statement_is_one_line_that_says_what_it_means_and_of_which_tasks():
    text = statement(config_of(), [["kinds", "senses"], ["kinds"]])
    assert "decoder/senses" in text and "decoder/kinds" not in text and "\n" not in text
    assert "min_cohort = 1" in text and "of the tasks senses:" in text


def test_the_same_statement_is_made_once():
    watch, one, two = Watch(config_of()), device(["kinds"]), device(["kinds"])
    assert watch.news([], 0.0) is None
    assert "decoder/kinds" in watch.news([one], 0.0) and watch.news([one], 0.0) is None
    assert watch.news([one, two], 0.0) is None and "decoder/kinds" in watch.news([one], 0.0)


@pytest.mark.parametrize("min_cohort", [1, 2])
def test_enroll_says_it_on_standard_error_and_leaves_the_output_alone(federation, command, min_cohort):
    directory, _ = federation(min_cohort=min_cohort)
    first = command("enroll", "one", directory, "--task", "kinds", "--json")
    assert first.stdout.count("\n") == 1 and first.stdout.startswith("{")
    second = command("enroll", "two", directory, "--task", "kinds")
    if min_cohort == 2:
        assert first.stderr == second.stderr == ""
        return
    assert first.stderr.startswith("note: ") and first.stderr.count("\n") == 1 and "decoder/kinds" in first.stderr
    assert second.stderr == ""
    assert "decoder/senses" in command("enroll", "three", directory, "--task", "senses").stderr


def test_serve_says_it_when_it_starts_and_when_a_join_shows_it(federation, enroll, running, capfd):
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


# what the devices are told, and what the coordinator keeps

ENCODER = "encoder/image"


def at_home(device, turn):
    """What the device was told to keep to itself in its turn."""
    trains = [message for message in device.received if isinstance(message, Train)]
    return set(trains[turn].home)


def value_of(service, name):
    return service.federation.blobs.get(service.federation.versions[name].digest)


def test_what_one_device_alone_owns_is_not_sent_and_keeps_version_0(federation, enroll, running):
    directory, manifest = federation(total=2, min_cohort=2)
    devices = [enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)]

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(*(device.take_part(service.url) for device in devices))
            versions = service.federation.versions
            shared = set(devices[0].owned) & set(devices[1].owned)
            for device in devices:
                assert shared and at_home(device, 0) == at_home(device, 1) == set(device.owned) - shared
                assert all(set(blobs) == shared for blobs in device.sent_updates.values())
                assert {name for name in device.owned if versions[name].version == 0} == set(device.owned) - shared
                (finish,) = [message for message in device.received if isinstance(message, Finish)]
                assert set(finish.home) == set(device.owned) - shared
            assert all(versions[name].version == 2 for name in shared)

    asyncio.run(main())


def test_a_device_with_nothing_in_common_reports_empty_updates(federation, enroll, running):
    directory, manifest = federation(total=3, min_cohort=2, min_devices=1)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.take_part(service.url)
            assert device.sent_updates == {0: {}, 1: {}, 2: {}} and len(service.store.attempts()) == 3
            assert {version.version for version in service.federation.versions.values()} == {0}

    asyncio.run(main())
    sent = b"".join(data for direction, data in device.wire if direction == "sent")
    assert len(device.home) == len(device.owned) and not any(data[-16:] in sent for data in device.home.values())


@pytest.mark.parametrize("restarts", [False, True])
def test_a_second_owner_changes_nothing_in_the_open_round_and_all_in_the_next(federation, enroll, running, restarts):
    """Round 0 opens while one device alone sees images. Another comes: that round stays as it was told, also across a
    restart. In the next both start from version 0, and what was at home is forgotten without having been sent."""
    directory, manifest = federation(total=2, min_cohort=2, clients_per_round=3, min_updates=2)
    one, two, late = (enroll(directory, manifest, *who) for who in (("one", IMAGES), ("two", TEXTS), ("late", IMAGES)))

    async def before():
        async with running(directory, manifest) as service:
            await asyncio.gather(one.connect(service.url), two.connect(service.url))
            first = await one.hear()
            await late.connect(service.url)
            await service.until(lambda: "late" in service.federation.machine.members)
            if not restarts:
                await after(service, first)
            return first

    async def after(service, first):
        assert ENCODER in first.home
        await one.take_round(first)
        grown, lives = (
            one.home[ENCODER],
            [asyncio.ensure_future(device.take_part(service.url)) for device in (two, late)],
        )
        second = await one.hear()
        assert second.type == "train" and ENCODER not in second.home
        assert value_of(service, ENCODER) == version_0(directory, manifest, ENCODER)
        await one.take_round(second)
        assert one.offers[1][1][ENCODER] == late.offers[0][1][ENCODER] == version_0(directory, manifest, ENCODER)
        await asyncio.gather(one.go_on(), *lives)
        assert service.federation.versions[ENCODER].version == 2 and ENCODER not in one.home
        assert ENCODER not in one.sent_updates[0] and one.sent_updates[1][ENCODER] != grown
        return None

    async def again(first):
        async with running(directory, manifest) as service:
            await one.connect(service.url)
            repeated = await one.hear()
            assert (repeated.home, repeated.components) == (first.home, first.components)
            await after(service, repeated)

    first = asyncio.run(before())
    if restarts:
        asyncio.run(again(first))


@pytest.mark.parametrize("restarts", [False, True])
def test_the_last_owner_goes_on_at_home_from_the_last_global_value(federation, enroll, running, restarts):
    """Three devices share round 0; one of the two that see images is revoked while round 1 is open. Round 1 stays as it
    was told, and what the last owner sends in it is averaged with nobody's; from round 2 on it keeps it to itself."""
    directory, manifest = federation(total=4, min_cohort=2, clients_per_round=3, min_devices=3, min_updates=2)
    one, two, gone = (enroll(directory, manifest, *who) for who in (("one", IMAGES), ("two", TEXTS), ("gone", IMAGES)))

    async def before():
        async with running(directory, manifest) as service:
            await asyncio.gather(*(device.connect(service.url) for device in (one, two, gone)))
            trains = await asyncio.gather(*(device.hear() for device in (one, two, gone)))
            assert all(ENCODER not in train.home for train in trains)
            await asyncio.gather(*(d.take_round(train) for d, train in zip((one, two, gone), trains, strict=True)))
            second = await one.hear()
            service.store.registry.revoke("gone", time.time())
            await service.until(lambda: "gone" not in service.federation.machine.members)
            if not restarts:
                await after(service, second)

    async def after(service, second):
        assert ENCODER not in second.home
        last_global = value_of(service, ENCODER)
        await one.take_round(second)
        life = asyncio.ensure_future(two.take_part(service.url))
        third = await one.hear()
        assert third.type == "train" and third.round == 2 and ENCODER in third.home
        assert value_of(service, ENCODER) == last_global and ENCODER in one.sent_updates[1]
        await one.take_round(third)
        expected = one.train(2, {ENCODER: last_global})
        assert one.home[ENCODER] == expected[ENCODER]
        await asyncio.gather(one.go_on(), life)
        assert one.home[ENCODER] == one.train(3, expected)[ENCODER] and ENCODER not in one.sent_updates[3]
        assert service.federation.versions[ENCODER].version == 1

    async def again():
        async with running(directory, manifest) as service:
            await one.connect(service.url)
            await after(service, await one.hear())

    asyncio.run(before())
    if restarts:
        asyncio.run(again())


def test_a_device_that_changes_its_tasks_is_an_owner_of_the_new_ones_from_the_next_round_on(
    federation, enroll, running
):
    directory, manifest = federation(total=2, min_cohort=2, clients_per_round=3, min_devices=2, min_updates=1)
    one, two = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(one.connect(service.url), two.connect(service.url))
            first = await one.hear()
            other = type(two)(manifest, "two", two.token, IMAGES)  # before it has trained at all
            await other.connect(service.url)
            changed = await other.hear()
            assert ENCODER in first.home and ENCODER in changed.home
            assert {ref.name for ref in changed.components} == set(other.owned)
            await asyncio.gather(one.take_round(first), other.take_round(changed))
            trains = await asyncio.gather(one.hear(), other.hear())
            assert all(ENCODER not in train.home for train in trains)

    asyncio.run(main())


def test_every_attempt_at_a_round_keeps_the_same_components_at_home(federation, enroll, running):
    """The second attempt opens when there are two owners, but one may have trained for the first attempt already."""
    directory, manifest = federation(total=1, min_cohort=2, clients_per_round=2, min_devices=2, min_updates=2)
    one, two, late = (enroll(directory, manifest, *who) for who in (("one", IMAGES), ("two", TEXTS), ("late", IMAGES)))

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(one.connect(service.url), two.connect(service.url))
            first, other = await asyncio.gather(one.hear(), two.hear())
            await late.connect(service.url)
            await service.until(lambda: "late" in service.federation.machine.members)
            assert (await one.take_round(first)).type == "accepted"
            await two.say(Decline(round=other.round, code="diverged", why="no"))
            train = await late.hear()
            assert service.federation.machine.current.attempt == 1 and ENCODER in train.home
            assert (await late.take_round(train)).type == "accepted"
            await service.until(lambda: service.federation.machine.phase == "finishing")

    asyncio.run(main())


def test_nobody_is_asked_before_it_is_recorded_what_stays_at_home(federation, enroll, running, monkeypatch):
    """Else a kill in between could lead to another answer for the same round."""
    directory, manifest = federation(total=1, min_cohort=2)
    one, two = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            open_round, may_record = service.store.open_round, threading.Event()
            monkeypatch.setattr(service.store, "open_round", lambda *args: may_record.wait(20) and open_round(*args))
            await asyncio.gather(one.connect(service.url), two.connect(service.url))
            machine = service.federation.machine
            await service.until(lambda: machine.current is not None and machine.awaits("one"))
            assert service.federation.assignment("one", one.owned) is None
            may_record.set()
            assert ENCODER in (await one.hear()).home

    asyncio.run(main())


def test_an_update_that_names_what_stays_at_home_ends_the_connection(federation, enroll, running):
    directory, manifest = federation(total=1, min_cohort=2)
    one, two = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(one.connect(service.url), two.connect(service.url))
            train = await one.hear()
            blobs = one.train(0, await one.fetch(train.components))
            await one.socket.send(encode(one.update(0, blobs)))
            with pytest.raises(ConnectionClosed, match="stays at home"):
                await one.hear()
            assert service.store.updates(0) == {}

    asyncio.run(main())


def version_0(directory, manifest, name):
    return (directory / "components" / f"{manifest.components[name].digest}.safetensors").read_bytes()
