"""The device plane over real sockets, with scripted devices: rounds, transfers, updates, and what crosses the wire."""

import asyncio
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from coordinator.credentials import rotate
from coordinator.events import Tick
from coordinator.identity import new_token, token_digest
from protocol.codec import decode, encode
from protocol.messages import CHUNK, Chunk, ComponentRef, Decline, Done, Fetch, Heartbeat
from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, digest_of, encode_tensors
from tap_core.aggregation import aggregate
from tap_core.simulation.in_process import next_components

IMAGES, TEXTS, BOTH = {"kinds": 10}, {"senses": 30}, {"kinds": 4, "captions": 8}


def expected_mean(manifest, name, updates, before):
    """The aggregate of one component from what devices sent: {device: (n, bytes)}; its old bytes if nobody did."""
    if not updates:
        return before
    dtype, shapes = manifest.config.wire.dtype, manifest.components[name].shapes
    tensors = {
        device: (n, decode_tensors(name, data, shapes=shapes, dtype=dtype).tensors)
        for device, (n, data) in updates.items()
    }
    return encode_tensors(ComponentTensors(name, aggregate(tensors, DTYPES[dtype])))


def run_to_the_end(running, directory, manifest, devices):
    async def main():
        async with running(directory, manifest) as service:
            byes = await asyncio.gather(*(device.take_part(service.url) for device in devices))
            assert [bye.code for bye in byes] == ["done"] * len(devices)
            assert service.federation.ended.is_set()
            return service.federation.versions

    return asyncio.run(main())


def simulated(manifest, devices, turn, **rounds):
    """What the simulator makes of the updates that the devices sent in a round, as bytes by component; ``rounds``
    replaces settings of the federation."""
    config = manifest.config.model_copy(update={"rounds": manifest.config.rounds.model_copy(update=rounds)})

    def decoded(components):
        return {
            name: decode_tensors(name, data, shapes=manifest.components[name].shapes, dtype=config.wire.dtype).tensors
            for name, data in components.items()
        }

    before, outcomes = {}, {}
    for device in devices:
        before |= decoded(device.offers[turn][1])
        update = SimpleNamespace(examples=device.examples, components=decoded(device.sent_updates[turn]))
        outcomes[device.name] = SimpleNamespace(update=update)
    after = {**before, **next_components(before, outcomes, config)}
    return {name: encode_tensors(ComponentTensors(name, tensors)) for name, tensors in after.items()}


@pytest.mark.parametrize("aggregation", ["mean", "trimmed_mean", "median"])
def test_every_way_to_aggregate_gives_the_simulators_bits(federation, enroll, running, aggregation):
    how = {"aggregation": aggregation, "trim": 0.25}
    directory, manifest = federation(total=2, clients_per_round=4, min_devices=4, **how)
    scales = {"one": (IMAGES, 0.5), "two": (TEXTS, -0.25), "three": (BOTH, 1.5), "four": ({**IMAGES, **TEXTS}, 3)}
    devices = [enroll(directory, manifest, name, tasks, scale=scale) for name, (tasks, scale) in scales.items()]
    run_to_the_end(running, directory, manifest, devices)
    for turn in range(2):
        expected = simulated(manifest, devices, turn)
        for device in devices:
            assert device.offers[turn + 1][1] == {name: expected[name] for name in device.owned}
        assert (expected == simulated(manifest, devices, turn, aggregation="mean")) == (aggregation == "mean")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_trap_1_a_device_receives_the_aggregate_bit_for_bit(federation, enroll, running, dtype):
    directory, manifest = federation(dtype=dtype, total=3, clients_per_round=3, min_devices=3)
    devices = [
        enroll(directory, manifest, "one", IMAGES, scale=0.5),
        enroll(directory, manifest, "two", TEXTS, scale=-0.25),
        enroll(directory, manifest, "three", BOTH, scale=1.5),
    ]
    run_to_the_end(running, directory, manifest, devices)
    assert [number for number, _ in devices[0].offers] == [0, 1, 2, "finish"]
    changed = 0
    for turn in range(3):
        for device in devices:
            _, before = device.offers[turn]
            _, after = device.offers[turn + 1]
            assert set(after) == set(device.owned)
            for name in device.owned:
                updates = {d.name: (d.examples[name], d.sent_updates[turn][name]) for d in devices if name in d.owned}
                assert after[name] == expected_mean(manifest, name, updates, before[name])
                changed += after[name] != before[name]
    assert changed > 3 * len(devices)


def test_trap_8_the_wire_carries_the_owned_components_and_nothing_else(federation, enroll, running):
    directory, manifest = federation()
    devices = [enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS, scale=0.25)]
    run_to_the_end(running, directory, manifest, devices)
    for device in devices:
        streams = {"sent": {}, "received": {}}
        other = {"sent": 0, "received": 0}
        for direction, data in device.wire:
            message = decode(data)
            if isinstance(message, Chunk):
                blob = streams[direction].setdefault(message.digest, bytearray())
                assert len(blob) == message.offset
                blob += message.data
            else:
                other[direction] += len(data)
        offered = {digest_of(data) for _, components in device.offers for data in components.values()}
        reported = {digest_of(data) for blobs in device.sent_updates.values() for data in blobs.values()}
        assert set(streams["received"]) == offered
        assert set(streams["sent"]) <= reported
        names = {name for _, components in device.offers for name in components}
        assert names == set(device.owned)
        assert not any(name.startswith("encoder/text") for name in devices[0].owned)
        assert max(other.values()) < 16_000  # everything that is not a component: names, digests, settings


def test_the_same_blob_is_not_asked_for_twice(federation, enroll, running):
    """An update that equals the global value bit for bit needs no transfer at all."""
    directory, manifest = federation(total=1, clients_per_round=1, min_devices=1)
    device = enroll(directory, manifest, "one", IMAGES, scale=1.0)  # round 0: tensor * 1 + 0
    run_to_the_end(running, directory, manifest, [device])
    assert not any(direction == "sent" and isinstance(decode(data), Chunk) for direction, data in device.wire)
    assert device.offers[0][1] == device.offers[1][1]


def one_round(federation, **options):
    return federation(**{"total": 1, "clients_per_round": 1, "min_devices": 1, **options})


def corrupt(device, manifest, components, how):
    """An update for round 0 that must be rejected: (blobs, changes of the message)."""
    blobs, name = device.train(0, components), device.owned[0]
    shapes = manifest.components[name].shapes
    good = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    if how == "nan":
        data = bytearray(blobs[name])
        data[-4:] = np.float32(np.nan).tobytes()
        return {**blobs, name: bytes(data)}, {}
    if how == "shape":
        return {**blobs, name: encode_tensors(ComponentTensors(name, {**good, "bias": np.zeros((1, 5), "f4")}))}, {}
    if how == "dtype":
        half = {key: value.astype("f2") for key, value in good.items()}
        return {**blobs, name: encode_tensors(ComponentTensors(name, half))}, {}
    if how == "names":
        good["extra"] = good.pop("bias")
        return {**blobs, name: encode_tensors(ComponentTensors(name, good))}, {}
    if how == "missing":
        fewer = {key: value for key, value in blobs.items() if key != name}
        return fewer, {"examples": {key: n for key, n in device.examples.items() if key != name}}
    if how == "examples":
        return blobs, {"examples": {**device.examples, name: device.examples[name] + 1}}
    assert how == "size"
    refs = tuple(
        ComponentRef(name=key, version=0, digest=digest_of(data), size=len(data) + (10**9 if key == name else 0))
        for key, data in blobs.items()
    )
    return blobs, {"components": refs}


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("nan", "tensors"),
        ("shape", "tensors"),
        ("dtype", "tensors"),
        ("names", "tensors"),
        ("missing", "components"),
        ("examples", "examples"),
        ("size", "size"),
    ],
)
def test_an_update_that_does_not_fit_is_rejected_and_changes_nothing(federation, enroll, running, how, code):
    directory, manifest = one_round(federation)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            train = await device.hear()
            blobs, changes = corrupt(device, manifest, await device.fetch(train.components), how)
            rejected = await device.report(0, blobs, **changes)
            assert (rejected.type, rejected.code) == ("rejected", code)
            assert service.store.updates(0) == {} and service.store.attempts()[0].missing == ("one",)
            assert service.federation.machine.strikes == {"one": 1}
            with pytest.raises(asyncio.TimeoutError):  # and it is not asked again until it has come back
                await asyncio.wait_for(device.socket.recv(), 0.2)
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())


def moved(manifest, components, by):
    """The components with one value of each moved by so much."""
    blobs = {}
    for name, data in components.items():
        tensors = decode_tensors(name, data, shapes=manifest.components[name].shapes, dtype="float32").tensors
        changed = {key: value.copy() for key, value in tensors.items()}
        changed["bias"][0] += np.float32(by)
        blobs[name] = encode_tensors(ComponentTensors(name, changed))
    return blobs


@pytest.mark.parametrize("value", [1e6, 3e38, -3e38, 0.1])
def test_values_that_no_training_can_give_are_refused_in_the_first_round(federation, enroll, running, value):
    """They were averaged, and every honest device then diverged."""
    directory, manifest = federation(total=1, clients_per_round=2, max_update_norm="10x")
    good, evil = enroll(directory, manifest, "good", IMAGES), enroll(directory, manifest, "evil", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(good.connect(service.url), evil.connect(service.url))
            given = await evil.fetch((await evil.hear()).components)
            rejected = await evil.report(0, moved(manifest, given, value))
            assert (rejected.type, rejected.code) == ("rejected", "norm")
            assert "norm is" in rejected.why and "of at most" in rejected.why and "\n" not in rejected.why
            honest = moved(manifest, await good.fetch((await good.hear()).components), 1e-4)
            assert (await good.report(0, honest)).type == "accepted"
            final = await good.fetch((await good.hear()).components)
            assert final == honest  # bit for bit: the mean over the one that counts

    asyncio.run(main())


def test_norms_are_kept_and_later_ones_are_measured_by_them(federation, enroll, running):
    """Within the optimizer's reach, ten times the usual is refused; what was accepted outlives a restart."""
    directory, manifest = federation(total=9, clients_per_round=2, min_devices=2, max_update_norm="10x")
    devices = [enroll(directory, manifest, name, IMAGES) for name in ("one", "two")]

    async def main():
        for numbers in ((0, 1), (2, 3)):
            async with running(directory, manifest) as service:
                for device in devices:
                    await device.connect(service.url)
                for number in numbers:
                    for device in devices:  # the learning rate warms up
                        assert (await move(manifest, device, number, 1e-5 * (number + 1))).type == "accepted"
                    await service.until(lambda number=number: service.federation.machine.round == number + 1)
                norms = dict(service.store.norms()["encoder/image"])
                assert norms == pytest.approx({n: 1e-5 * (n + 1) for n in range(numbers[1] + 1)}, rel=0.05)
                assert service.federation.norms == service.store.norms()
                for device in devices:
                    await device.socket.close()
        async with running(directory, manifest) as service:
            await devices[0].connect(service.url)
            rejected = await move(manifest, devices[0], 4, 6e-4)
            assert (rejected.type, rejected.code) == ("rejected", "norm")

    asyncio.run(main())


def test_a_device_that_is_alone_with_a_component_shuts_nobody_out(federation, enroll, running):
    """Six rounds of tiny changes by one device; then another one trains as devices do, and counts."""
    directory, manifest = federation(total=9, clients_per_round=2, min_devices=1, max_update_norm="10x")
    tiny, honest = (enroll(directory, manifest, name, IMAGES) for name in ("tiny", "honest"))

    async def main():
        async with running(directory, manifest) as service:
            await tiny.connect(service.url)
            for number in range(6):
                assert (await move(manifest, tiny, number, 1e-6)).type == "accepted"
            await tiny.hear()
            await tiny.socket.close()
            await honest.connect(service.url)
            await service.until(lambda: service.federation.machine.members == {"tiny", "honest"})
            service.store.registry.revoke("tiny", 1.0)
            assert (await move(manifest, honest, None, 1e-4)).type == "accepted"

    asyncio.run(main())


async def move(manifest, device, number, by):
    """Take part in a round with an update that moves each component by so much; returns the answer."""
    train = await device.hear()
    assert number is None or train.round == number
    return await device.report(train.round, moved(manifest, await device.fetch(train.components), by))


def test_a_blob_with_another_digest_ends_the_connection(federation, enroll, running):
    directory, manifest = one_round(federation)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            blobs = await device.trained(0)
            await device.say(device.update(0, blobs))
            want = await device.hear()
            size = next(len(data) for data in blobs.values() if digest_of(data) == want.digest)
            for chunk in device.session.send_blob(want.digest, bytes(size), want.offset):
                await device.socket.send(chunk)
            await device.socket.wait_closed()
            assert device.socket.close_code == 1007
            assert not any(service.federation.blobs.has(digest_of(data)) for data in blobs.values())

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"garbage", "text", b"\xff" * 5000])
def test_garbage_ends_the_connection_with_the_protocols_code(federation, enroll, running, data):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            await device.socket.send(data)
            with pytest.raises(ConnectionClosed) as error:
                await device.socket.recv()
            assert error.value.rcvd.code == (1003 if isinstance(data, str) else 1007)
            await service.until(lambda: service.plane.links["one"].session is None)

    asyncio.run(main())


def test_an_upload_cut_in_the_middle_goes_on_where_it_was(federation, enroll, running):
    shapes = {"large": (600, 1024)}  # 2.4 MB
    directory, manifest = one_round(federation, shapes=shapes)
    device = enroll(directory, manifest, "one", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            blobs = await device.trained(0)
            await device.say(device.update(0, blobs))
            want = await device.hear()
            data = next(data for data in blobs.values() if digest_of(data) == want.digest)
            chunks = list(device.session.send_blob(want.digest, data, 0))
            assert len(chunks) == 3
            await device.socket.send(chunks[0])
            partial = service.plane.links["one"].partial
            await service.until(lambda: any(incoming.offset for incoming in partial.values()))
            device.socket.transport.abort()
            await service.until(lambda: service.plane.links["one"].session is None)
            await device.connect(service.url)
            assert (await device.hear()).type == "train"
            await device.say(device.update(0, blobs))
            wants = {}
            while len(wants) < len(blobs):
                event = await device.hear()
                wants[event.digest] = event.offset
            assert wants[want.digest] == CHUNK
            assert sorted(wants.values())[:-1] == [0] * (len(blobs) - 1)

    asyncio.run(main())


def test_a_device_is_heard_while_it_is_slow_to_take_what_it_asked_for(federation, enroll, running):
    """Else its pings would find nobody, and a slow connection would be cut in every long download."""
    directory, manifest = one_round(federation, shapes={"large": (2500, 1024)})  # 10 MB a component
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            refs = (await device.hear()).components
            offsets = tuple(device.session.expect(ref.digest, ref.size) for ref in refs)
            await device.say(Fetch(digests=tuple(ref.digest for ref in refs), offsets=offsets))
            for step in range(1, 31):  # more than the coordinator's queue holds
                await device.say(Heartbeat(phase="receiving", step=step, steps=30))
            link = service.plane.links["one"]
            await service.until(lambda: link.step == 30)
            assert link.bytes_sent < sum(ref.size for ref in refs)  # the download is still under way
            for _ in refs:
                assert (await device.hear()).digest in {ref.digest for ref in refs}

    asyncio.run(main())


def test_uploads_that_are_never_completed_do_not_fill_the_disk(federation, enroll, running):
    directory, manifest = one_round(federation)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            staged = set()
            for attempt in range(3):
                await device.connect(service.url)
                blobs = await device.trained(attempt)
                by_digest = {digest_of(data): data for data in blobs.values()}
                await device.say(device.update(0, blobs))
                wants = [await device.hear() for _ in by_digest]
                for want in wants[:-1]:
                    for chunk in device.session.send_blob(want.digest, by_digest[want.digest], want.offset):
                        await device.socket.send(chunk)
                upload = service.plane.links["one"].session._upload
                await service.until(lambda upload=upload: len(upload._missing) == 1)
                await device.socket.close()
                await service.until(lambda: service.plane.links["one"].session is None)
                incoming = service.federation.blobs.directory / "incoming"
                staged = {path.name for path in incoming.rglob("one/*")}
                assert staged <= set(by_digest)
            assert len(by_digest) > 2

    asyncio.run(main())


def test_late_updates_are_rejected_and_the_device_goes_on_with_the_next_round(federation, enroll, running):
    directory, manifest = federation(total=2, clients_per_round=2, min_devices=2, deadline=0.5)
    quick, slow = enroll(directory, manifest, "quick", IMAGES), enroll(directory, manifest, "slow", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await slow.connect(service.url)
            playing = asyncio.ensure_future(quick.take_part(service.url))
            train = await slow.hear()
            blobs = slow.train(0, await slow.fetch(train.components))
            await service.until(lambda: service.federation.machine.round == 1)
            assert service.store.attempts()[0].missing == ("slow",)
            rejected = await slow.report(0, blobs)
            assert (rejected.type, rejected.code) == ("rejected", "late")
            event = await slow.hear()
            assert (event.type, event.round) == ("train", 1)
            assert (await slow.report(1, slow.train(1, await slow.fetch(event.components)))).type == "accepted"
            assert (await slow.hear()).type == "finish"
            await slow.say(Done())
            assert (await slow.hear()).code == "done"
            assert (await playing).code == "done"

    asyncio.run(main())


def test_an_accepted_update_is_accepted_again_but_counts_once(federation, enroll, running):
    """The acknowledgement is lost: the device comes back while its update is being counted, and says it again."""
    directory, manifest = federation(clients_per_round=2, min_devices=2)
    device, other = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await other.connect(service.url)
            await device.connect(service.url)
            blobs = await device.trained(0)
            await device.say(device.update(0, blobs))
            machine = service.federation.machine
            contributions = {ref.name: (ref, device.examples[ref.name]) for ref in device.update(0, blobs).components}
            assert len(contributions) == len(device.owned)
            for _ in device.owned:
                want = await device.hear()
                data = next(data for data in blobs.values() if digest_of(data) == want.digest)
                for chunk in device.session.send_blob(want.digest, data, want.offset):
                    await device.socket.send(chunk)
            await service.until(lambda: "one" in machine.current.reported)
            assert (await device.hear()).type == "accepted"
            await device.connect(service.url)
            with pytest.raises(asyncio.TimeoutError):  # the round waits for the other one only
                await asyncio.wait_for(device.socket.recv(), 0.2)
            assert list(service.store.updates(0)) == ["one"]

    asyncio.run(main())


def test_a_full_disk_drops_the_connection_and_the_device_may_try_again(federation, enroll, running, monkeypatch):
    directory, manifest = one_round(federation)
    device = enroll(directory, manifest, "one", IMAGES)

    def full(*_):
        raise OSError(28, "No space left on device")

    async def main():
        async with running(directory, manifest) as service:
            with monkeypatch.context() as patch:
                patch.setattr(service.federation.blobs, "stage", full)
                await device.connect(service.url)
                blobs = await device.trained(0)
                with pytest.raises(ConnectionClosed) as error:
                    await device.report(0, blobs)
                assert error.value.rcvd.code == 1011
            assert not service.federation.stopping.is_set() and service.store.updates(0) == {}
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())


def test_a_component_that_too_few_report_keeps_its_value(federation, enroll, running):
    """All three own what their tasks share, and two of them the rest; a round samples two."""
    directory, manifest = federation(total=4, clients_per_round=2, min_devices=3, min_cohort=2)
    tasks = {"one": IMAGES, "two": IMAGES, "three": TEXTS}
    devices = [enroll(directory, manifest, name, asked) for name, asked in tasks.items()]
    versions = run_to_the_end(running, directory, manifest, devices)
    reported = [[device for device in devices if turn in device.sent_updates] for turn in range(4)]
    assert {tuple(device.name for device in both) for both in reported} >= {("one", "two"), ("one", "three")}
    for name, version in versions.items():
        averaged = [t for t, both in enumerate(reported) if all(name in device.sent_updates[t] for device in both)]
        assert version.version == (averaged[-1] + 1 if averaged else 0), name


def test_status_and_heartbeats(federation, enroll, running):
    directory, manifest = one_round(federation)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            await device.hear()
            await device.say(Heartbeat(phase="federated", step=3, steps=20))
            await service.until(lambda: service.plane.status()["one"]["step"] == 3)
            facts = service.plane.status()["one"]
            sent = sum(len(data) for direction, data in device.wire if direction == "sent")
            received = sum(len(data) for direction, data in device.wire if direction == "received")
            assert (facts["connected"], facts["phase"], facts["steps"]) == (True, "federated", 20)
            assert (facts["bytes_sent"], facts["bytes_received"]) == (received, sent)
            status = service.federation.status()
            assert (status["phase"], status["round"], status["rounds"]) == ("open", 0, 1)
            assert (status["sampled"], status["reported"]) == (["one"], [])

    asyncio.run(main())


def test_asking_for_what_was_not_offered_ends_the_connection(federation, enroll, running):
    directory, manifest = one_round(federation)
    device, text = enroll(directory, manifest, "one", IMAGES), manifest.components["encoder/text"]

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            assert (await device.hear()).type == "train"
            await device.socket.send(encode(Fetch(digests=(text.digest,), offsets=(0,))))
            with pytest.raises(ConnectionClosed) as error:
                await device.socket.recv()
            assert error.value.rcvd.code == 1002

    asyncio.run(main())


async def reports(device, update=lambda device, number, given: device.train(number, given)):
    """Take part in the next round; returns (round, the coordinator's answer), or None if the end has come."""
    event = await device.hear()
    if event.type != "train":
        return None
    return event.round, (
        await device.report(event.round, update(device, event.round, await device.fetch(event.components)))
    )


async def until_the_end(device):
    while await reports(device):
        pass
    return device


def bad(device, number, given):
    return {name: data[:-4] + np.float32(np.nan).tobytes() for name, data in device.train(number, given).items()}


async def expire(service):
    """Let the deadline of the open attempt pass."""
    machine = service.federation.machine
    machine.current = replace(machine.current, deadline=0.0)
    await service.federation._handle(Tick())


def test_a_silent_device_holds_up_two_rounds_and_no_more(federation, enroll, running):
    """It is connected, and every device is sampled in every round; each round was held to its deadline."""
    directory, manifest = federation(total=6, clients_per_round=2, min_updates=1)
    device, silent = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "silent", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(device.connect(service.url), silent.connect(service.url))
            for _ in range(2):
                assert (await reports(device))[1].type == "accepted"
                assert service.federation.machine.missing == ("silent",)
                await expire(service)
            await until_the_end(device)
            missing = [attempt.missing for attempt in service.store.attempts()]
            assert missing == [("silent",)] * 2 + [()] * 4 and service.federation.machine.missed == {"silent": 2}

    asyncio.run(main())


def test_a_silent_device_does_not_pause_a_federation_whose_others_report(federation, enroll, running):
    """A round needs two updates and samples two of three; five failures in a row used to pause it."""
    directory, manifest = federation(total=8, clients_per_round=2, min_updates=2, min_devices=3)
    devices = [enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)]
    silent = enroll(directory, manifest, "silent", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            machine, failures = service.federation.machine, 0
            await asyncio.gather(*(device.connect(service.url) for device in (*devices, silent)))
            playing = asyncio.gather(*map(until_the_end, devices))
            while machine.phase != "finishing":
                await service.until(lambda: machine.missing == ("silent",) or machine.phase == "finishing")
                if machine.missing:
                    await expire(service)
                    failures += 1
            await playing
            assert failures == 2 and machine.missed == {"silent": 2}

    asyncio.run(main())


def test_a_silent_device_that_moves_again_is_sampled_again(federation, enroll, running):
    directory, manifest = federation(total=30, clients_per_round=2, min_updates=1)
    device, silent = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "silent", TEXTS)

    async def round_without(service):
        machine = service.federation.machine
        number, answer = await reports(device)
        assert answer.type == "accepted"
        if machine.missing:
            await expire(service)
        await service.until(lambda: machine.round == number + 1)

    async def main():
        async with running(directory, manifest) as service:
            machine = service.federation.machine
            await asyncio.gather(device.connect(service.url), silent.connect(service.url))
            for _ in range(2):
                await round_without(service)
            assert "silent" in machine.away
            await silent.hear()
            await silent.say(Heartbeat(phase="federated", step=1, steps=20))
            await service.until(lambda: "silent" not in machine.away)
            assert next(row for row in service.store.registry.all() if row.name == "silent").away is False
            for _ in range(2):  # the first was opened without it
                await round_without(service)
            assert "silent" in machine.away and machine.missed == {"silent": 3}
            await silent.say(Heartbeat(phase="federated", step=1, steps=20))
            await silent.say(Heartbeat(phase="federated", step=1, steps=99))  # the same step again is no progress
            await service.until(lambda: service.plane.links["silent"].steps == 99)
            assert "silent" in machine.away

    asyncio.run(main())


def test_a_rejected_device_is_not_waited_for_and_is_barred_in_the_end(federation, enroll, running, command):
    """The round was held to its deadline, here a minute, and the device sampled again and again."""
    directory, manifest = federation(total=5, clients_per_round=2, max_strikes=2)
    device, evil = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "evil", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            machine = service.federation.machine
            await asyncio.gather(device.connect(service.url), evil.connect(service.url))
            for number in range(2):
                told, answer = await reports(evil, bad)
                assert (told, answer.code) == (number, "tensors")
                assert machine.strikes == {"evil": number + 1} and "evil" in machine.away
                await evil.connect(service.url)
                await service.until(lambda: "evil" not in machine.away)
                assert machine.missing == ("one",)
                assert await reports(device)
                await service.until(lambda number=number: machine.round == number + 1)
                assert service.store.attempts()[number].missing == ("evil",)
            assert machine.barred == {"evil"} and machine.current.sampled == machine.roster == ("one",)
            facts = service.federation.status()
            assert (facts["strikes"], facts["barred"]) == ({"evil": 2}, ["evil"])
            shown = await asyncio.to_thread(command, "devices", directory)
            assert "evil                     barred" in shown.stdout and "2 strikes: sampled no more" in shown.stdout
            old, evil.token = evil.token, new_token()
            where = (service.store.engine, "small", token_digest(old), token_digest(evil.token))
            await asyncio.to_thread(rotate, *where, time.time())
            assert (await evil.connect(service.url)).type == "welcome"
            await service.until(lambda: service.federation.enrolment("evil").token_sha256 == where[-1])
            assert machine.barred == {"evil"}  # a token that the device replaces itself clears nothing
            evil.token = (await asyncio.to_thread(command, "enroll", "evil", directory, "--renew")).stdout.strip()
            await service.until(lambda: machine.strikes == {})
            assert (await evil.connect(service.url)).type == "welcome"
            assert (await reports(device))[0] == 2
            (number, answer), _ = await asyncio.gather(reports(evil), reports(device))
            assert (number, answer.type) == (3, "accepted")
        recorded = json.loads((await asyncio.to_thread(command, "status", directory, "--json")).stdout)
        assert (recorded["strikes"], recorded["barred"]) == ({}, [])

    asyncio.run(main())


def test_a_device_that_declines_is_not_waited_for_and_takes_part_in_the_next_round(federation, enroll, running):
    directory, manifest = federation(total=2, clients_per_round=2)
    device, other = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(device.connect(service.url), other.connect(service.url))
            await other.fetch((await other.hear()).components)
            await other.say(Decline(round=0, code="diverged", why="the loss is not finite"))
            assert (await reports(device))[0] == 0
            assert service.store.attempts()[0].missing == ("two",)
            assert [number for number, _ in await asyncio.gather(reports(device), reports(other))] == [1, 1]
            await service.until(lambda: service.federation.machine.phase == "finishing")
            assert service.store.attempts()[1].contributors == ("one", "two")
            outcomes = service.federation.metrics.updates
            assert outcomes.labels("declined")._value.get() == 1 and service.federation.machine.strikes == {}

    asyncio.run(main())


def test_when_every_device_diverges_the_federation_pauses_after_five_attempts(federation, enroll, running):
    directory, manifest = federation(total=1, clients_per_round=2)
    devices = [enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)]

    async def declines(device):
        for _ in range(5):
            await device.say(Decline(round=(await device.hear()).round, code="diverged", why="not finite"))

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(*(device.connect(service.url) for device in devices))
            await asyncio.wait_for(asyncio.gather(*map(declines, devices)), 10)
            await service.until(lambda: service.store.control()[0])
            why = service.store.control()[0]
            assert "devices diverged (one, two)" in why and "tap-coordinator rollback DIR --to ROUND" in why
            assert [attempt.status for attempt in service.store.attempts()] == ["failed"] * 5

    asyncio.run(main())


def test_a_restart_forgets_neither_strikes_nor_excuses_nor_missed_deadlines(federation, enroll, running):
    directory, manifest = federation(total=2, clients_per_round=4, min_devices=4, min_updates=2)
    names = ("one", "two", "three", "four")
    devices = {name: enroll(directory, manifest, name, IMAGES) for name in names}

    def known(machine):
        current = machine.current
        facts = (current.attempt, current.sampled, current.reported, current.excused, machine.absent)
        return (machine.round, machine.roster, machine.missed, machine.strikes, machine.missing, *facts)

    async def main():
        async with running(directory, manifest) as service:
            await asyncio.gather(*(device.connect(service.url) for device in devices.values()))
            assert (await reports(devices["one"]))[0] == 0
            assert (await reports(devices["two"], bad))[1].type == "rejected"
            await devices["three"].say(Decline(round=(await devices["three"].hear()).round, code="diverged", why="no"))
            machine = service.federation.machine
            await service.until(lambda: len(machine.current.excused) == 2)
            before = known(machine)
            assert machine.missing == ("four",) and machine.roster == ("four", "one", "three")
        async with running(directory, manifest) as service:
            assert known(service.federation.machine) == before
            for _ in range(2):  # nobody is back
                await expire(service)
            assert service.federation.machine.current is None
            assert service.federation.machine.missed == {"four": 1, "three": 1}
        async with running(directory, manifest) as service:
            machine = service.federation.machine
            assert machine.missed == {"four": 1, "three": 1} and machine.strikes == {"two": 1}
            assert machine.absent == machine.away == {"two", "three", "four"} and machine.roster == ("one",)

    asyncio.run(main())
