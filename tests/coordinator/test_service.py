"""The served coordinator as a process: killed and restarted, stopped, paused, locked; and its pages."""

import asyncio
import contextlib
import json
import shutil
import signal
import time
import urllib.request

import pytest
from websockets.exceptions import WebSocketException

TASKS = {"one": {"kinds": 10}, "two": {"senses": 30}, "three": {"kinds": 4, "captions": 8}}
SCALES = {"one": 0.5, "two": -0.25, "three": 1.5}
ROUNDS = {"total": 3, "clients_per_round": 2, "min_devices": 3}


def devices_of(directory, manifest, enroll, database=""):
    return [
        enroll(directory, manifest, name, tasks, database=database, scale=SCALES[name]) for name, tasks in TASKS.items()
    ]


async def persist(device, url_of):
    """Take part, connecting again whenever the connection is lost, as a device does; returns the final components."""
    while True:
        with contextlib.suppress(OSError, WebSocketException, asyncio.TimeoutError):
            bye = await device.take_part(url_of())
            if bye.code == "done":
                return device.offers[-1][1]
        await asyncio.sleep(0.05)


def undisturbed(federation, enroll, running, **options):
    """The final components of a run without any kill, by device."""
    directory, manifest = federation("undisturbed", **{**ROUNDS, **options})
    devices = devices_of(directory, manifest, enroll)

    async def main():
        async with running(directory, manifest) as service:
            return await asyncio.gather(*(persist(device, lambda: service.url) for device in devices))

    return asyncio.run(main())


@pytest.mark.parametrize("moment", [3, 8, 60, 130])
def test_a_kill_in_the_middle_of_a_round_changes_no_bit(federation, enroll, running, served, moment):
    expected = undisturbed(federation, enroll, running)
    directory, manifest = federation("killed", **ROUNDS)
    devices = devices_of(directory, manifest, enroll)
    service = served(directory)

    async def main():
        tasks = [asyncio.ensure_future(persist(device, lambda: service.url)) for device in devices]
        for _ in range(2):
            seen = sum(len(device.wire) for device in devices)
            while sum(len(device.wire) for device in devices) < seen + moment and not any(t.done() for t in tasks):
                await asyncio.sleep(0.001)
            service.kill()
            await asyncio.to_thread(service.start)
        return await asyncio.gather(*tasks)

    final = asyncio.run(main())
    assert final == expected
    samples = {}
    for line in service.events("round opens"):
        assert samples.setdefault((line["round"], line["attempt"]), line["sampled"]) == line["sampled"]


def test_accepted_updates_survive_a_kill_and_are_not_asked_for_again(federation, enroll, served):
    directory, manifest = federation(total=1, min_devices=2)
    one, two = devices_of(directory, manifest, enroll)[:2]
    service = served(directory)

    async def main():
        for device in (one, two):
            assert (await device.connect(service.url)).type == "welcome"
        train = await one.hear()
        blobs = one.train(0, await one.fetch(train.components))
        assert (await one.report(0, blobs)).type == "accepted"
        service.kill()
        await asyncio.to_thread(service.start)
        assert service.events("round goes on")[-1]["reported"] == ["one"]
        assert service.status()["reported"] == ["one"]
        byes = await asyncio.gather(one.take_part(service.url), two.take_part(service.url))
        assert [bye.code for bye in byes] == ["done", "done"]
        assert [number for number, _ in one.offers] == ["finish"]

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_devices_are_told(federation, enroll, served, number):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", TASKS["one"])
    service = served(directory)

    async def main():
        await device.connect(service.url)
        service.process.send_signal(number)
        assert (await device.hear()).code == "shutdown"
        await device.socket.wait_closed()

    asyncio.run(main())
    assert service.process.wait(10) == 0
    assert not (directory / "state" / "serving.json").exists()
    assert service.events("stopping") and "Traceback" not in service.log.read_text()


def test_pause_resume_status_and_stop_work_while_it_serves(federation, enroll, served, command):
    directory, manifest = federation(total=1, clients_per_round=1, min_devices=1)
    device = enroll(directory, manifest, "one", TASKS["one"])
    service = served(directory)

    def until(condition):
        limit = time.monotonic() + 10
        while not condition(service.status()):
            assert time.monotonic() < limit
            time.sleep(0.05)

    command("pause", directory, "--why", "new disks")
    until(lambda status: status["paused"] == "new disks")

    async def main():
        await device.connect(service.url)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(device.socket.recv(), 0.5)
        await asyncio.to_thread(command, "resume", directory)
        assert (await device.hear()).type == "train"
        shown = json.loads((await asyncio.to_thread(command, "status", directory, "--json")).stdout)
        assert shown["serving"] is True and shown["devices"]["one"]["connected"] is True
        assert (shown["phase"], shown["sampled"]) == ("open", ["one"])
        await asyncio.to_thread(command, "stop", directory)
        assert (await device.hear()).code == "shutdown"

    asyncio.run(main())
    assert service.process.wait(10) == 0
    shown = command("status", directory).stdout
    assert "0 of 1 rounds committed" in shown and "round 1: sampled one; reported -" in shown
    assert command("rounds", directory).stdout.startswith("round 1: open; sampled one")
    assert json.loads(command("rounds", directory, "--json").stdout)[0]["round"] == 0
    again = json.loads(command("status", directory, "--json").stdout)
    assert again["serving"] is False and (again["phase"], again["sampled"]) == ("open", ["one"])
    done = command("stop", directory, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: no coordinator serves")


def test_the_pages(federation, served):
    directory, _ = federation()
    service = served(directory)
    assert json.loads(service.get("/healthz")) == {"status": "ok"}
    assert json.loads(service.get("/readyz")) == {"ready": True}
    status = service.status()
    assert (status["phase"], status["round"], status["rounds"], status["devices"]) == ("waiting", 0, 2, {})
    metrics = service.get("/metrics")
    assert "tap_round 0.0" in metrics and "tap_devices_connected 0.0" in metrics


def test_the_operator_plane_stays_on_this_machine_when_devices_come_from_elsewhere(federation, served):
    directory, _ = federation()
    service = served(directory, "--host", "127.0.0.2")
    assert (service.addresses["host"], service.addresses["http_host"]) == ("127.0.0.2", "127.0.0.1")
    assert service.status()["phase"] == "waiting"
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.2:{service.addresses['http_port']}/healthz", timeout=5)


def test_one_directory_is_served_once(federation, served, command):
    directory, _ = federation()
    served(directory)
    second = command("serve", directory, "--port", 0, "--http-port", 0, check=False)
    assert second.returncode == 1
    assert second.stderr.startswith("error: another coordinator serves") and second.stderr.count("\n") == 1


def test_on_postgresql_a_kill_changes_no_bit_and_no_second_host_serves(
    federation, enroll, running, served, command, postgres
):
    expected = undisturbed(federation, enroll, running)
    url = postgres()
    directory, manifest = federation("networked", **ROUNDS)
    elsewhere = directory.with_name("elsewhere")
    shutil.copytree(directory, elsewhere)
    devices = devices_of(directory, manifest, enroll, url)
    service = served(directory, "--database", url)
    second = command("serve", elsewhere, "--port", 0, "--http-port", 0, "--database", url, check=False)
    assert second.returncode == 1
    last = second.stderr.strip().splitlines()[-1]
    assert last == "error: another coordinator serves federation 'small' from this database; stop it first"

    async def main():
        tasks = [asyncio.ensure_future(persist(device, lambda: service.url)) for device in devices]
        while len(service.events("update")) < 3:
            await asyncio.sleep(0.005)
        service.kill()
        await asyncio.to_thread(service.start)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == expected
    assert service.terminate() == 0


@pytest.mark.parametrize("option", ["--port", "--http-port"])
def test_a_port_in_use_is_one_line(federation, served, command, option):
    directory, _ = federation()
    other, _ = federation("other")
    taken = served(directory).addresses["port"]
    ports = {"--port": 0, "--http-port": 0, option: taken}
    done = command("serve", other, *[str(part) for pair in ports.items() for part in pair], check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot listen on 127.0.0.1") and option in last
