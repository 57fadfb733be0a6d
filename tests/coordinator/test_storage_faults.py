"""Full disks, wrong databases and damaged files under a coordinator: nothing acknowledged is lost or altered."""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys

import pytest
from sqlalchemy.exc import OperationalError
from websockets.exceptions import ConnectionClosed

from coordinator import audit, patience
from coordinator.blobs import ROUND, BlobStore
from coordinator.config import StatePaths
from coordinator.store import Store
from protocol.tensors import digest_of

IMAGES, TEXTS = {"kinds": 10}, {"senses": 30}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_RETRY_SECONDS", 0.01)


def two_devices(enroll, directory, manifest):
    return [enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS, scale=0.25)]


def play(running, directory, manifest, devices):
    """A whole federation; returns the digests of its final components."""

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(*(device.take_part(service.url) for device in devices))
            return {name: version.digest for name, version in service.federation.versions.items()}

    return asyncio.run(main())


@pytest.fixture
def undisturbed(federation, enroll, running):
    """What a federation of the two devices makes when nothing happens."""

    def make(**rounds):
        directory, manifest = federation("undisturbed", **rounds)
        return play(running, directory, manifest, two_devices(enroll, directory, manifest))

    return make


def blob_file(directory, digest):
    return StatePaths(directory).blobs / digest


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


# a full disk


def test_an_update_is_not_acknowledged_while_the_disk_is_full(
    federation, enroll, served, small_disk, tmp_path, command
):
    """The disk is 16 kB short at the upload; once there is room, the device sends again and the round closes."""
    shapes = {"lora_a": (64, 64), "lora_b": (64, 32)}
    disk = small_disk(kilobytes=4096)
    directory, manifest = federation(
        str(disk / "federation"), shapes=shapes, total=1, clients_per_round=1, min_devices=1
    )
    device = enroll(directory, manifest, "one", IMAGES)
    service = served(directory)

    async def first_try():
        await device.connect(service.url)
        train = await device.hear()
        blobs = device.train(0, await device.fetch(train.components))
        fill(disk, leave=16_000)
        with contextlib.suppress(ConnectionClosed):
            answer = await device.report(0, blobs)
            pytest.fail(f"a full disk answered {answer}")

    asyncio.run(first_try())
    assert service.process.poll() is None
    (disk / "filler").unlink()
    asyncio.run(device.take_part(service.url))
    assert service.terminate() == 0
    report = json.loads(command("verify", directory, "--json").stdout)
    assert report["problems"] == [] and report["checked"] > 2 * len(device.owned)


def fill(disk, leave):
    room = os.statvfs(disk)
    with open(disk / "filler", "wb") as file:
        file.write(b"x" * (room.f_bavail * room.f_frsize - leave))


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (BlobStore, "stage"),
        (BlobStore, "seal"),
        (BlobStore, "collect"),
        (Store, "updates"),
        (Store, "open_round"),
        (Store, "commit_round"),
        (Store, "fail_round"),
    ],
)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OperationalError("x", {}, Exception("full"))]
)
def test_the_close_of_a_round_is_tried_until_it_works(
    federation, enroll, running, monkeypatch, undisturbed, owner, method, error
):
    """Each write that the coordinator makes for a round fails three times before it works."""
    rounds = {"total": 3, "deadline": 3 if method == "fail_round" else 60}
    expected = undisturbed(total=3)
    left, original = [3], getattr(owner, method)

    def failing(self, *args, **kwargs):
        of_a_device = method in ("stage", "seal") and args[0] != ROUND
        if started and left[0] and not of_a_device:
            left[0] -= 1
            raise error
        return original(self, *args, **kwargs)

    started = []
    monkeypatch.setattr(owner, method, failing)
    directory, manifest = federation(**rounds)
    devices = two_devices(enroll, directory, manifest)

    async def main():
        async with running(directory, manifest) as service:
            started.append(True)
            if method == "fail_round":  # a first attempt that nobody answers
                for device in devices:
                    await device.connect(service.url)
                await service.until(lambda: left[0] == 0)
                for device in devices:
                    await device.socket.close()
            await asyncio.gather(*(device.take_part(service.url) for device in devices))
            assert not service.federation.stopping.is_set()
            return {name: version.digest for name, version in service.federation.versions.items()}

    assert asyncio.run(main()) == expected
    assert left == [0]


def test_a_commit_whose_answer_was_lost_counts_once(federation, enroll, running, monkeypatch, undisturbed):
    expected = undisturbed()
    original, calls = Store.commit_round, []

    def commits_and_fails(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls.append(args)
        if len(calls) % 2:
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(Store, "commit_round", commits_and_fails)
    directory, manifest = federation()
    assert play(running, directory, manifest, two_devices(enroll, directory, manifest)) == expected
    assert len(calls) == 4


def test_a_file_size_limit_while_serving_loses_nothing(federation, enroll, served, command):
    """RLIMIT_FSIZE makes the kernel write short: neither blobs nor database may be sealed in part."""
    directory, manifest = federation(shapes={"lora_a": (300, 300)}, total=1, clients_per_round=1, min_devices=1)
    device = enroll(directory, manifest, "one", IMAGES)
    service = served(directory)
    limit = 300_000  # a component has 360 kB
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    async def first_try():
        await device.connect(service.url)
        blobs = await device.trained(0)
        with contextlib.suppress(ConnectionClosed):
            answer = await device.report(0, blobs)
            pytest.fail(f"a file that was cut off answered {answer}")

    asyncio.run(first_try())
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    asyncio.run(device.take_part(service.url))
    assert service.terminate() == 0
    assert json.loads(command("verify", directory, "--json").stdout)["problems"] == []


def test_an_init_that_cannot_be_written_whole_leaves_nothing(tmp_path):
    (tmp_path / "federation.toml").write_text(
        'name = "small"\nfoundation = "deploy/demo/foundation/tiny-flava"\n[tasks.t]\nkind = "text_classification"\n'
        'inputs = ["text"]\nclasses = ["a", "b"]\n'.replace("deploy/", f"{os.getcwd()}/deploy/")
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy.tap.cli",
            "init",
            str(tmp_path / "federation.toml"),
            "--out",
            str(tmp_path / "out"),
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["federation.toml"]


# another database


def test_a_coordinator_given_another_database_deletes_nothing(federation, enroll, running, command, tmp_path):
    directory, manifest = federation()
    play(running, directory, manifest, two_devices(enroll, directory, manifest))
    blobs = StatePaths(directory).blobs
    before = sorted(blobs.rglob("*"))
    for arguments in (
        ("serve", directory, "--port", 0, "--http-port", 0),
        ("status", directory),
        ("devices", directory),
    ):
        done = command(*arguments, "--database", f"sqlite:///{tmp_path / 'other.db'}", check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "does not belong to the database given; give the --database" in done.stderr
    assert sorted(blobs.rglob("*")) == before


def test_so_does_one_whose_state_is_older_than_identities(federation, enroll, running, command, tmp_path):
    directory, manifest = federation()
    play(running, directory, manifest, two_devices(enroll, directory, manifest))
    StatePaths(directory).identity.unlink()
    blobs = StatePaths(directory).blobs
    before = sorted(blobs.rglob("*"))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    done = command("serve", directory, "--port", 0, "--http-port", 0, "--database", other, check=False)
    assert done.returncode == 2 and "blobs that the database given does not know" in done.stderr
    assert sorted(blobs.rglob("*")) == before


def test_a_state_directory_gets_its_identity_back_from_its_database(federation, enroll, running):
    directory, manifest = federation()
    devices = two_devices(enroll, directory, manifest)
    play(running, directory, manifest, devices)
    identity = StatePaths(directory).identity
    kept = identity.read_text()
    identity.unlink()
    play(running, directory, manifest, devices)
    assert identity.read_text() == kept and len(kept.strip()) == 32


# two devices with the same bytes


def test_an_upload_that_is_given_up_takes_nothing_from_another_device(federation, enroll, running):
    """Both stage the same blobs; one abandons them, the other's update must still be accepted."""
    directory, manifest = federation(total=1, min_updates=1)
    one, two = (enroll(directory, manifest, name, IMAGES) for name in ("one", "two"))

    async def main():
        async with running(directory, manifest) as service:
            for device in (one, two):
                await device.connect(service.url)
            for device in (one, two):
                device.blobs = await device.trained(0)
            by_digest = {digest_of(data): data for data in one.blobs.values()}
            assert set(by_digest) == {digest_of(data) for data in two.blobs.values()}
            for device in (one, two):  # all but the last blob
                await device.say(device.update(0, device.blobs))
                device.wants = [await device.hear() for _ in by_digest]
                await send(device, by_digest, device.wants[:-1])
            upload = service.plane.links["two"].session._upload
            await service.until(lambda: len(upload._missing) == 1)
            await one.socket.close()
            await service.until(lambda: service.plane.links["one"].session is None)
            await one.connect(service.url)
            await one.hear()
            other = one.train(7, one.blobs)
            await one.say(one.update(0, other))  # gives up what it had staged
            await one.hear()
            await send(two, by_digest, two.wants[-1:])
            assert (await two.hear()).type == "accepted"
            assert not service.federation.stopping.is_set()

    asyncio.run(main())


async def send(device, by_digest, wants):
    for want in wants:
        for chunk in device.session.send_blob(want.digest, by_digest[want.digest], want.offset):
            await device.socket.send(chunk)


# damage


@pytest.mark.parametrize("damage", [flip, cut, os.unlink], ids=["a flipped bit", "cut off", "missing"])
def test_a_stored_update_that_is_damaged_is_asked_for_again(federation, enroll, running, undisturbed, damage, capsys):
    """Damaged between its acceptance and the close, over a restart: never averaged, and no restart loop."""
    expected = undisturbed(total=1)
    directory, manifest = federation(total=1)
    one, two = two_devices(enroll, directory, manifest)
    blobs = {}

    async def first_half():
        async with running(directory, manifest) as service:
            await two.connect(service.url)  # is a member, and silent
            await one.connect(service.url)
            blobs.update(await one.trained(0))
            assert (await one.report(0, blobs)).type == "accepted"

    async def second_half():
        async with running(directory, manifest) as service:
            await asyncio.gather(one.take_part(service.url), two.take_part(service.url))
            assert list(service.federation.blobs.quarantined()) != [] or damage is os.unlink
            return {name: version.digest for name, version in service.federation.versions.items()}

    asyncio.run(first_half())
    damage(blob_file(directory, digest_of(blobs["decoder/kinds"])))
    assert asyncio.run(second_half()) == expected
    assert one.sent_updates[0] == blobs and "stored update damaged" in capsys.readouterr().out


def test_a_damaged_update_whose_device_is_gone_is_missing(federation, enroll, running):
    directory, manifest = federation(total=1, min_updates=1, deadline=1.5)
    one, two = two_devices(enroll, directory, manifest)

    async def main():
        async with running(directory, manifest) as service:
            for device in (one, two):
                await device.connect(service.url)
            blobs = await one.trained(0)
            assert (await one.report(0, blobs)).type == "accepted"
            await one.socket.close()
            data = service.federation.blobs
            damaged = digest_of(blobs["decoder/kinds"])
            data._known.clear()
            flip(blob_file(directory, damaged))
            await two.hear()
            answer = await two.report(0, two.train(0, await two.fetch(two.received[-1].components)))
            assert answer.type == "accepted"
            await service.until(lambda: service.federation.machine.phase == "finishing")
        attempt = service.store.attempts()[-1]
        assert (attempt.status, attempt.contributors, attempt.missing) == ("committed", ("two",), ("one",))

    asyncio.run(main())


def middle_of(federation, enroll, running, rounds_done, **rounds):
    """A federation of five rounds of which some are done, and stopped; returns what a test needs."""
    directory, manifest = federation(total=5, **rounds)
    devices = two_devices(enroll, directory, manifest)

    async def main():
        async with running(directory, manifest) as service:
            commit = service.store.commit_round

            def pause_after(number, *args, **kwargs):
                commit(number, *args, **kwargs)
                if number == rounds_done - 1:
                    service.store.set_paused("by the test", 1.0)
                    service.federation.machine.paused = "by the test"

            service.store.commit_round = pause_after
            tasks = [asyncio.ensure_future(device.take_part(service.url)) for device in devices]
            machine = service.federation.machine
            await service.until(lambda: machine.round == rounds_done and machine.phase == "waiting")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return service.store.kept_versions(10), machine.round

    versions, number = asyncio.run(main())
    return directory, manifest, devices, versions, number


def resumed(running, directory, manifest, devices, before=lambda service: None):
    async def main():
        async with running(directory, manifest) as service:
            before(service)
            service.store.set_paused(None, 1.0)
            await asyncio.gather(*(device.take_part(service.url) for device in devices))
            return service.store.attempts()

    return asyncio.run(main())


@pytest.mark.parametrize("damage", [flip, cut, os.unlink], ids=["a flipped bit", "cut off", "missing"])
def test_a_damaged_global_component_goes_back_to_its_newest_whole_version(federation, enroll, running, command, damage):
    directory, manifest, devices, versions, number = middle_of(federation, enroll, running, 2)
    current, previous = versions["decoder/kinds"][:2]
    damage(blob_file(directory, current.digest))
    broken = command("verify", directory, check=False)
    assert broken.returncode == 1 and f"version {current.version} of decoder/kinds" in broken.stdout
    for device in devices:
        device.offers.clear()
        device.cache.clear()
    attempts = resumed(running, directory, manifest, devices)
    first, components = devices[0].offers[0]
    assert digest_of(components["decoder/kinds"]) == previous.digest
    assert digest_of(components["encoder/image"]) == versions["encoder/image"][0].digest
    assert first == number and [a.status for a in attempts] == ["committed"] * 5  # no attempt was under way
    acts = [(entry.act, entry.actor) for entry in audit.entries(open_engine(directory), "small")]
    assert ("repair", "coordinator") in acts
    assert command("verify", directory).returncode == 0


def open_engine(directory):
    from coordinator.database import connect

    return connect(StatePaths(directory).database_url(""))


def test_damage_is_found_while_serving_and_the_round_under_way_is_spent(federation, enroll, running):
    """The newest version of a component breaks while a round is open: a device that fetches it is given the older one,
    in the next round, and one that has trained already is not asked for the same round again."""
    directory, manifest, devices, versions, number = middle_of(federation, enroll, running, 2)
    one, two = devices
    for device in devices:
        device.offers.clear()
        device.cache.clear()

    async def main():
        async with running(directory, manifest) as service:
            service.store.set_paused(None, 1.0)
            await one.connect(service.url)
            train = await one.hear()
            await one.fetch(train.components)
            current, previous = versions["decoder/senses"][:2]
            service.federation.blobs._known.clear()
            flip(blob_file(directory, current.digest))
            one.socket.transport.abort()
            with contextlib.suppress(ConnectionClosed):
                await two.take_part(service.url)
            await asyncio.gather(one.take_part(service.url), two.take_part(service.url))
            attempts = service.store.attempts()
            assert [a.status for a in attempts if a.round == number] == ["spent"]
            assert digest_of(two.offers[0][1]["decoder/senses"]) == previous.digest
            assert two.offers[0][0] == one.offers[0][0] == number + 1

    asyncio.run(main())


def test_version_0_is_restored_from_the_directory_that_init_made(federation, enroll, running):
    directory, manifest = federation()
    devices = two_devices(enroll, directory, manifest)

    async def begin_only():
        async with running(directory, manifest):
            pass

    asyncio.run(begin_only())
    broken = manifest.components["encoder/text"].digest
    flip(blob_file(directory, broken))

    async def main():
        async with running(directory, manifest) as service:
            assert service.federation.versions["encoder/text"].digest == broken
            assert service.federation.blobs.is_whole(broken) and len(service.federation.blobs.quarantined()) == 1
            await asyncio.gather(*(device.take_part(service.url) for device in devices))

    asyncio.run(main())


def test_a_component_without_a_whole_version_is_one_line_and_nothing_is_deleted(federation, enroll, running, command):
    directory, manifest, _, versions, _ = middle_of(federation, enroll, running, 2)
    for version in versions["decoder/kinds"]:
        path = blob_file(directory, version.digest)
        if path.exists():
            flip(path)
    flip(directory / "components" / f"{manifest.components['decoder/kinds'].digest}.safetensors")
    done = command("serve", directory, "--port", 0, "--http-port", 0, check=False)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and error.startswith("error: component 'decoder/kinds' is damaged in every version")
    report = json.loads(command("verify", directory, "--json", check=False).stdout)
    assert sum("decoder/kinds" in problem for problem in report["problems"]) == len(versions["decoder/kinds"]) + 1


# rollback


def test_rollback_brings_back_the_values_of_a_round_and_the_federation_goes_on(federation, enroll, running, command):
    directory, manifest, devices, versions, number = middle_of(federation, enroll, running, 3)
    assert number == 3
    owned = sorted({*devices[0].owned, *devices[1].owned})
    done = command("rollback", directory, "--to", 1, "--json")
    assert json.loads(done.stdout) == {"to": 1, "components": owned, "next_round": 3}
    assert "already" in command("rollback", directory, "--to", 1).stdout
    for device in devices:
        device.offers.clear()
    attempts = resumed(running, directory, manifest, devices)
    for device in devices:
        first, components = device.offers[0]
        assert first == 3 and [n for n, _ in device.offers] == [3, 4, "finish"]
        for name, data in components.items():
            assert digest_of(data) == next(v.digest for v in versions[name] if v.version == 1)
    assert [a.status for a in attempts] == ["committed"] * 5
    acts = [(entry.act, entry.detail) for entry in audit.entries(open_engine(directory), "small")]
    assert ("rollback", "rolled back to round 1") in acts


def test_a_round_that_was_under_way_is_spent_by_a_rollback(federation, enroll, running, command):
    """A device that has trained the open round from the bad values must not be asked for that round again."""
    directory, manifest, devices, _, number = middle_of(federation, enroll, running, 2)
    one, _ = devices

    async def report_once():
        async with running(directory, manifest) as service:
            service.store.set_paused(None, 1.0)
            await one.connect(service.url)
            train = await one.hear()
            assert train.round == number
            answer = await one.report(number, one.train(number, await one.fetch(train.components)))
            assert answer.type == "accepted"

    asyncio.run(report_once())
    command("rollback", directory, "--to", 0)
    for device in devices:
        device.offers.clear()
    attempts = resumed(running, directory, manifest, devices)
    assert [a.status for a in attempts if a.round == number] == ["spent"]
    assert devices[0].offers[0][0] == number + 1
    for name, data in devices[0].offers[0][1].items():
        assert digest_of(data) == manifest.components[name].digest


@pytest.mark.parametrize(("to", "message"), [(9, "not between 0 and 3"), (-1, "not between 0 and 3")])
def test_a_rollback_to_a_round_that_never_was_is_one_line(federation, enroll, running, command, to, message):
    directory, *_ = middle_of(federation, enroll, running, 3)
    done = command("rollback", directory, f"--to={to}", check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_rollback_past_the_kept_versions_says_how_far_it_can_go(federation, enroll, running, command):
    directory, *_ = middle_of(federation, enroll, running, 4, keep_versions=2)
    done = command("rollback", directory, "--to", 1, check=False)
    assert done.returncode == 2 and "the oldest round to go back to is 3" in done.stderr
    assert command("rollback", directory, "--to", 3).returncode == 0
    assert command("verify", directory).stdout.strip().endswith("no problems")  # version 2 was cleared away long ago
    done = command("rollback", directory, "--to", 2, check=False)
    assert done.returncode == 2 and "the oldest round to go back to is 3" in done.stderr


def test_a_rollback_beside_a_running_coordinator_is_refused(federation, enroll, served, command):
    directory, _ = federation()
    served(directory)
    done = command("rollback", directory, "--to", 0, check=False)
    assert done.returncode == 1 and "another coordinator serves" in done.stderr


# verify


def test_verify_lists_what_is_wrong_and_empties_the_quarantine(federation, enroll, running, command):
    directory, manifest = federation()
    play(running, directory, manifest, two_devices(enroll, directory, manifest))
    assert command("verify", directory).stdout.strip().endswith("no problems")
    stray = b"left by nobody"
    blob_file(directory, digest_of(stray)).write_bytes(stray)
    flip(directory / "components" / f"{manifest.components['encoder/text'].digest}.safetensors")
    done = command("verify", directory, "--json", check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["unreferenced"] == [digest_of(stray)]
    assert ["version 0 of encoder/text" in problem for problem in report["problems"]] == [True]

    async def start_once():
        async with running(directory, manifest):
            pass

    asyncio.run(start_once())
    quarantine = StatePaths(directory).blobs / "quarantine"
    assert [path.read_bytes() for path in quarantine.iterdir()] == [stray]
    cleaned = json.loads(command("verify", directory, "--clean", "--json", check=False).stdout)
    assert cleaned["freed"] == len(stray) and list(quarantine.iterdir()) == []


def test_the_last_versions_are_kept_and_no_others(federation, enroll, running):
    directory, manifest = federation(total=6, keep_versions=3)
    play(running, directory, manifest, two_devices(enroll, directory, manifest))
    store_versions = {}

    async def look():
        async with running(directory, manifest) as service:
            store_versions.update(service.store.kept_versions(3))
            return set(service.federation.blobs.digests())

    stored = asyncio.run(look())
    assert stored == {version.digest for versions in store_versions.values() for version in versions}
    assert {len(versions) for versions in store_versions.values()} == {1, 3}  # 1: owned by nobody
