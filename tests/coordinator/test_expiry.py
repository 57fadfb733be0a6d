"""Tokens that expire: void everywhere from that second on, and never unless the operator said so."""

import asyncio
import json
import time

import pytest
from sqlalchemy import update
from websockets.exceptions import InvalidStatus

from coordinator.database import connect
from coordinator.durations import seconds_of
from coordinator.schema import devices
from coordinator.store import Store
from tap_core.errors import UsageError

IMAGES = {"kinds": 10}
ONE_ROUND = {"total": 1, "clients_per_round": 1, "min_devices": 1}


def expire(store, device, at=1.0):
    with store.engine.begin() as db:
        db.execute(update(devices).where(devices.c.name == device).values(token_expires_at=at))


def device_of(store, token_sha256, at):
    valid = store.registry.enrolments(at)
    return next((device for device, enrolment in valid.items() if enrolment.token_sha256 == token_sha256), None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("30m", 1800), ("45s", 45), ("36500d", 3_153_600_000)]
)
def test_a_length_of_time_is_a_number_and_a_unit(text, seconds):
    assert seconds_of(text, "--expires") == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "d", "0d", "-1d", "1.5h", "1 h", "1w", "36501d", "999999999d", "1d\n", "٣d"]
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="--expires .* is no length of time; write it as 90d, 12h, 30m") as caught:
        seconds_of(text, "--expires")
    assert "\n" not in str(caught.value)


def test_a_token_is_valid_up_to_its_expiry_and_void_from_then_on(tmp_path):
    store = Store(connect(f"sqlite:///{tmp_path / 'x.db'}"), "f")
    store.registry.enroll("short", "1" * 64, 100.0, expires_at=200.0)
    store.registry.enroll("long", "2" * 64, 100.0)
    assert set(store.registry.enrolments(199.9)) == {"long", "short"}
    assert device_of(store, "1" * 64, 199.9) == "short"
    assert set(store.registry.enrolments(200.0)) == {"long"}
    assert device_of(store, "1" * 64, 200.0) is None
    assert device_of(store, "2" * 64, 1e12) == "long"
    store.registry.enroll("short", "3" * 64, 300.0, renew=True)
    assert device_of(store, "3" * 64, 1e12) == "short"  # a renewal without --expires lasts


def test_a_device_whose_token_expires_is_turned_out_and_not_let_in_again(federation, enroll, running):
    directory, manifest = federation(min_devices=2)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            assert (await device.connect(service.url)).type == "welcome"
            await service.until(lambda: "one" in service.federation.machine.members)
            expire(service.store, "one")
            assert (await device.hear()).code == "revoked"
            with pytest.raises(InvalidStatus) as caught:
                await device.connect(service.url)
            assert caught.value.response.status_code == 401 and b"expired" in caught.value.response.body
            await service.until(lambda: service.federation.machine.members == set())

    asyncio.run(main())


def test_after_a_restart_no_round_waits_for_an_expired_device(federation, enroll, running):
    directory, manifest = federation(**ONE_ROUND)
    gone, other = (enroll(directory, manifest, name, IMAGES) for name in ("gone", "other"))

    async def main():
        async with running(directory, manifest) as service:
            assert (await gone.connect(service.url)).type == "welcome"
            assert (await gone.hear()).type == "train"
            expire(service.store, "gone")
        async with running(directory, manifest) as service:
            assert service.federation.machine.members == set()
            assert (await other.take_part(service.url)).code == "done"
            assert service.store.attempts()[-1].contributors == ("other",)
            await service.until(service.federation.ended.is_set)  # --exit-when-done does not wait for it either

    asyncio.run(main())


def test_devices_shows_when_a_token_ends(federation, command):
    directory, _ = federation()
    command("enroll", "one", directory, "--expires", "90d")
    command("enroll", "two", directory)
    one, two = json.loads(command("devices", directory, "--json").stdout)
    assert abs(one["token_expires_at"] - time.time() - 90 * 86400) < 60 and two["token_expires_at"] is None
    lines = command("devices", directory).stdout.splitlines()
    assert ", until 2" in lines[0] and "until" not in lines[1]
    done = command("enroll", "three", directory, "--expires", "soon", check=False)
    assert done.returncode == 2 and "--expires 'soon' is no length of time" in done.stderr
