"""Who is let in to the device plane, and for how long: tokens, hellos, second connections, over real sockets."""

import asyncio

import pytest
from sqlalchemy.exc import OperationalError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from coordinator.identity import new_token, token_digest
from protocol.codec import decode, encode
from protocol.messages import SUBPROTOCOL
from tap_core.settings.federation import FederationConfig

IMAGES = {"kinds": 10}
ONE_ROUND = {"total": 1, "clients_per_round": 1, "min_devices": 1}


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({}, "carries no token"),
        ({"Authorization": "Bearer wrong"}, "not valid"),
        ({"Authorization": "Basic dXNlcjpw"}, "carries no token"),
        ({"Authorization": "Bearer "}, "carries no token"),
    ],
)
def test_a_bad_token_is_refused_before_the_upgrade(federation, running, headers, why):
    directory, manifest = federation()

    async def main():
        async with running(directory, manifest) as service:
            with pytest.raises(InvalidStatus) as error:
                await connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL])
            assert error.value.response.status_code == 401
            body = error.value.response.body.decode()
            assert why in body and "tap-coordinator enroll" in body
            assert service.plane.links == {}

    asyncio.run(main())


def test_a_revoked_device_is_turned_out_and_not_let_in_again(federation, enroll, running):
    directory, manifest = federation(min_devices=2)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            assert (await device.connect(service.url)).type == "welcome"
            await service.until(lambda: "one" in service.federation.machine.members)
            service.store.registry.revoke("one", 1.0)
            assert (await device.hear()).code == "revoked"
            with pytest.raises(InvalidStatus):
                await device.connect(service.url)
            await service.until(lambda: service.federation.machine.members == set())

    asyncio.run(main())


def test_a_device_revoked_between_its_hello_and_its_joining_is_no_member(federation, enroll, running):
    directory, manifest = federation(min_devices=1)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            join, joined = service.federation.join, asyncio.Event()

            async def late(name, membership):
                service.store.registry.revoke(name, 1.0)
                await service.federation.tokens.refresh()
                await join(name, membership)
                joined.set()

            service.federation.join = late
            assert (await device.connect(service.url)).type == "welcome"
            await joined.wait()
            machine = service.federation.machine
            assert machine.members == machine.connected == set() and machine.phase == "waiting"

    asyncio.run(main())


def test_who_is_revoked_is_turned_out_whatever_fails_for_one_that_is_renewed(federation, enroll, running, monkeypatch):
    directory, manifest = federation(min_devices=3)
    one, two = (enroll(directory, manifest, name, IMAGES) for name in ("one", "two"))
    monkeypatch.setattr("coordinator.patience.FIRST_RETRY_SECONDS", 0.01)

    async def main():
        async with running(directory, manifest) as service:
            for device in (one, two):
                assert (await device.connect(service.url)).type == "welcome"
            await service.until(lambda: service.federation.machine.members == {"one", "two"})
            registry = service.store.registry
            is_blamed, failures = registry.is_blamed, [OperationalError("", {}, Exception("database is locked"))]

            def failing(name):
                if failures:
                    raise failures.pop()
                return is_blamed(name)

            registry.is_blamed = failing
            registry.enroll("one", token_digest(new_token()), 1.0, renew=True)
            registry.revoke("two", 1.0)
            assert (await two.hear()).code == "revoked"
            await service.until(lambda: service.federation.machine.members == {"one"})
            assert not failures

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": "somebody"}, "wrong_device"),
        ({"federation": "another"}, "wrong_federation"),
        ({"schema_version": 99}, "schema"),
        ({"foundation": "0" * 64}, "foundation"),
        ({"tasks": {"kinds": 1, "dancing": 1}}, "unknown_task"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_with_the_fix(federation, enroll, running, changes, code):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            refused = await device.connect(service.url, device.hello(**changes))
            assert (refused.type, refused.code) == ("refuse", code)
            assert refused.why and refused.fix and "\n" not in refused.why + refused.fix
            with pytest.raises(ConnectionClosed):
                await device.socket.recv()
            assert service.federation.machine.members == set()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("tasks", "bounds", "code", "option"),
    [
        ({"kinds": 10**12}, {}, "examples", "--max-examples 1000000000000"),
        ({"kinds": 1_000_001}, {}, "examples", "--max-examples 1000001"),
        ({"kinds": 11}, {"max_examples": 10}, "examples", "--max-examples 11"),
        ({"senses": 1}, {"allowed_tasks": ["kinds"]}, "task_not_allowed", "--task senses"),
    ],
)
def test_a_hello_beyond_the_bounds_of_its_token_is_refused(
    federation, enroll, running, command, tasks, bounds, code, option
):
    """One token that claimed 10^12 examples made the average its own; any token could claim any task."""
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", tasks, bounds=bounds)

    async def main():
        async with running(directory, manifest) as service:
            refused = await device.connect(service.url)
            assert (refused.type, refused.code) == ("refuse", code)
            assert option in refused.fix and "--renew" in refused.fix
            assert service.federation.machine.members == set()
            arguments = ["enroll", "one", directory, "--renew", *option.split()]
            device.token = (await asyncio.to_thread(command, *arguments)).stdout.strip()
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())


def test_a_second_connection_replaces_the_first_and_the_round_goes_on(federation, enroll, running):
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            assert (await device.hear()).type == "train"
            first = device.socket, device.session
            bye = await device.take_part(service.url)
            assert bye.code == "done" and device.offers[0][0] == 0
            farewell = first[1].receive(await first[0].recv())
            assert farewell[0].code == "replaced"
            await service.until(lambda: service.plane.status()["one"]["connected"] is False)

    asyncio.run(main())


def test_a_hello_without_tasks_looks_at_the_settings_and_touches_nothing(federation, enroll, running):
    """Neither the rounds, which would count on the device, nor its other connection, which may be training."""
    directory, manifest = federation(**ONE_ROUND)
    device, other = (enroll(directory, manifest, name, IMAGES) for name in ("one", "two"))

    async def main():
        async with running(directory, manifest) as service:
            welcome = await other.connect(service.url, other.hello(tasks={}))
            assert (welcome.type, welcome.owned) == ("welcome", ())
            assert FederationConfig.model_validate_json(welcome.settings) == manifest.config
            await other.socket.wait_closed()
            assert other.socket.close_code == 1000
            assert service.federation.machine.members == set() and service.federation.machine.current is None
            assert all(row.joined_at is None for row in service.store.registry.all())
            assert (await device.connect(service.url)).type == "welcome"
            train = await device.hear()
            held, device.socket, session = device.socket, None, device.session
            assert (await device.connect(service.url, device.hello(tasks={}))).type == "welcome"
            await device.socket.wait_closed()
            device.socket, device.session = held, session
            answer = await device.report(train.round, device.train(0, await device.fetch(train.components)))
            assert answer.type == "accepted"
            wrong = await other.connect(service.url, other.hello(tasks={}, federation="another"))
            assert (wrong.type, wrong.code) == ("refuse", "wrong_federation")

    asyncio.run(main())


def test_a_connection_kept_back_is_of_no_use_once_its_token_is_void(federation, enroll, running):
    directory, manifest = federation(**ONE_ROUND)
    device, other = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            headers = {"Authorization": f"Bearer {device.token}"}
            spare = await connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL])
            await asyncio.to_thread(service.store.registry.revoke, "one", 1.0)
            await service.until(lambda: "one" not in service.federation.enrolled)  # from here on nobody looks for it
            await spare.send(encode(device.hello()))
            refused = decode(await spare.recv())
            assert (refused.type, refused.code) == ("refuse", "revoked")
            assert await other.take_part(service.url)
            assert service.store.attempts()[0].sampled == ("two",)

    asyncio.run(main())


def test_a_connection_with_the_new_token_outlives_the_old_tokens_end(federation, enroll, running):
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            old = service.federation.enrolment("one")
            device.token = new_token()
            digest = token_digest(device.token)
            await asyncio.to_thread(service.store.registry.enroll, "one", digest, 2.0, renew=True)
            assert (await device.connect(service.url)).type == "welcome"
            await service.until(lambda: service.federation.enrolment("one") != old)
            assert (await device.hear()).type == "train"
            await asyncio.sleep(0.1)
            assert service.plane.links["one"].session is not None and device.socket.close_code is None

    asyncio.run(main())
