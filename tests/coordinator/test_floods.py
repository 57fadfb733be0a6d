"""Connections, tokens, hellos and heartbeats in numbers that no honest device sends: the service works on."""

import asyncio
import contextlib
import os
import resource
import socket
import time

import pytest
from sqlalchemy import event, update
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

import coordinator.admission
import coordinator.device_server
from coordinator.schema import devices
from protocol.codec import encode
from protocol.messages import SUBPROTOCOL, Heartbeat

IMAGES, TEXTS = {"kinds": 10}, {"senses": 30}
ONE_ROUND = {"total": 1, "clients_per_round": 1, "min_devices": 1}


@contextlib.contextmanager
def idle_connections(port, count):
    """So many TCP connections on which nothing is ever said; those that the service cuts are opened again, once."""
    held = []

    def open_one():
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))

    for _ in range(count):
        open_one()
    try:
        yield held
    finally:
        for one in held:
            one.close()


def small(descriptors):
    """Limits a new process to so many open files."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


@pytest.mark.parametrize(("descriptors", "count"), [(1024, 1100), (128, 300)])
@pytest.mark.parametrize("plane", ["port", "http_port"])
def test_a_round_closes_while_idle_connections_are_held(federation, enroll, served, descriptors, count, plane):
    directory, manifest = federation(total=1, clients_per_round=2, min_devices=2)
    one, two = enroll(directory, manifest, "one", IMAGES), enroll(directory, manifest, "two", TEXTS)
    service = served(directory, before=small(descriptors))

    async def main():
        assert (await one.connect(service.url)).type == "welcome"  # before the flood
        with idle_connections(service.addresses[plane], count) as held:
            assert len(held) == count
            byes = await asyncio.gather(one.take_part(service.url), two.take_part(service.url))
            assert [bye.code for bye in byes] == ["done", "done"]
            assert service.status()["round"] == 1
        assert len(os.listdir(f"/proc/{service.process.pid}/fd")) < descriptors

    asyncio.run(main())
    assert service.terminate() == 0
    assert "Traceback" not in service.log.read_text()


def test_a_crowd_behind_one_address_gets_in_to_the_last(federation, enroll, running, monkeypatch):
    """As a proxy brings it after a restart: 400 connections at once, each with its request."""
    monkeypatch.setattr(coordinator.admission, "CONNECTIONS_A_MINUTE", 10_000)
    monkeypatch.setattr(coordinator.device_server, "WAITING_PER_TOKEN", 10_000)
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    def crowd(port):
        request = (
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
            f"Authorization: Bearer {device.token}\r\n\r\n"
        )
        sockets = []
        for _ in range(400):
            sockets.append(socket.create_connection(("127.0.0.1", port), timeout=10))
            sockets[-1].sendall(request.encode())
        answers = [one.recv(12).decode() for one in sockets]
        for one in sockets:
            one.close()
        return answers

    async def main():
        async with running(directory, manifest) as service:
            answers = await asyncio.to_thread(crowd, int(service.url.rpartition(":")[2]))
            assert set(answers) == {"HTTP/1.1 101"}

    asyncio.run(main())


def test_one_token_holds_few_connections_without_a_welcome(federation, enroll, running):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            headers = {"Authorization": f"Bearer {device.token}"}
            spare = [
                await connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL]) for _ in range(10)
            ]
            await asyncio.sleep(0.05)
            assert [one.close_code is None for one in spare] == [False] * 6 + [True] * 4
            assert (await device.connect(service.url)).type == "welcome"
            await spare[-1].send(encode(device.hello(tasks={})))
            assert await spare[-1].recv()
            (waiting,) = service.plane._waiting.values()
            await service.until(lambda: len([peer for peer in waiting if not peer.is_welcome]) == 2)
            for one in (*spare, device.socket):
                await one.close()
            await service.until(lambda: service.plane._waiting == {})

    asyncio.run(main())


def test_messages_are_small_until_the_welcome(federation, enroll, running):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            headers = {"Authorization": f"Bearer {device.token}"}
            early = await connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL])
            await early.send(bytes(64 * 1024 + 1))
            with pytest.raises(ConnectionClosed) as error:
                await early.recv()
            assert error.value.rcvd.code == 1009

    asyncio.run(main())


def test_five_hundred_connections_of_one_token_cost_little_memory(federation, enroll, served):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)
    service = served(directory)

    async def main():
        headers = {"Authorization": f"Bearer {device.token}"}
        held = []

        async def come():
            with contextlib.suppress(InvalidHandshake, OSError, asyncio.TimeoutError, ConnectionClosed):
                one = await connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL])
                held.append(one)
                for _ in range(20):  # the first ends the session, or waits with the others in the queue
                    await asyncio.wait_for(one.send(bytes(60_000)), 2)

        assert (await device.connect(service.url)).type == "welcome"
        before = service.peak_memory
        await asyncio.gather(*(come() for _ in range(500)))
        assert service.peak_memory - before < 64, (before, service.peak_memory)
        assert len(held) >= 50
        for one in held:
            one.transport.abort()

    asyncio.run(main())
    assert service.status()["phase"] == "waiting"


def test_heartbeats_beyond_measure_end_the_connection(federation, enroll, running):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            assert (await device.connect(service.url)).type == "welcome"

            async def beat():
                for step in range(1000):
                    await device.say(Heartbeat(phase="x", step=step, steps=0))
                    await asyncio.sleep(0)
                await device.hear()

            with pytest.raises(ConnectionClosed) as error:
                await beat()
            assert (error.value.rcvd.code, error.value.rcvd.reason) == (1008, "too many heartbeats")

    asyncio.run(main())


def _frame(opcode, payload=b"", *, fin=True):
    """A WebSocket frame of a client, masked with zeros."""
    return bytes([(0x80 if fin else 0) | opcode, 0x80 | len(payload)]) + bytes(4) + payload


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (_frame(9, b"x" * 125) * 2000, "control frames"),
        (_frame(10) * 2000, "control frames"),
        (_frame(2, fin=False) + _frame(0, fin=False) * 2000, "fragments of one message"),
    ],
    ids=["pings", "pongs", "fragments"],
)
def test_frames_without_number_are_not_answered_or_kept(federation, enroll, running, capsys, data, what):
    """The answers to pings that nobody reads, and empty pieces of a message that never ends, would fill the memory."""
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            assert (await device.connect(service.url)).type == "welcome"
            device.socket.transport.pause_reading()
            device.socket.transport.write(data)
            await service.until(lambda: service.plane.links["one"].session is None)
            device.socket.transport.resume_reading()
            with pytest.raises(ConnectionClosed):
                await device.hear()
            assert (await device.connect(service.url)).type == "welcome"

    asyncio.run(main())
    told = [line for line in capsys.readouterr().out.splitlines() if "too often" in line]
    assert len(told) == 1 and what in told[0]


def test_wrong_tokens_are_slowed_and_a_valid_one_from_the_same_address_is_not(federation, enroll, running, capsys):
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:

            async def guess(number):
                headers = {"Authorization": f"Bearer tap_{number}"}
                with pytest.raises(InvalidStatus) as error:
                    await connect(service.url, additional_headers=headers, subprotocols=[SUBPROTOCOL])
                return error.value.response

            reads, real = [], service.federation.tokens._read
            service.federation.tokens._read = lambda: reads.append(1) or real()
            began = time.monotonic()
            answers = [answer for _ in range(4) for answer in await asyncio.gather(*(guess(n) for n in range(25)))]
            took = time.monotonic() - began
            codes = [answer.status_code for answer in answers]
            assert codes.count(401) == 30 and codes.count(429) == 70
            assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in answers if answer.status_code == 429)
            assert len(reads) <= took / 0.25 + took / 0.5 + 2
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())
    assert capsys.readouterr().out.count("unauthorized") == 1


def test_a_device_enrolled_a_moment_ago_gets_in(federation, enroll, running):
    directory, manifest = federation(**ONE_ROUND)

    async def main():
        async with running(directory, manifest) as service:
            device = await asyncio.to_thread(enroll, directory, manifest, "late", IMAGES)
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())


def test_an_expired_token_is_void_and_its_connection_ends(federation, enroll, running):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            assert (await device.connect(service.url)).type == "welcome"
            with service.store.engine.begin() as db:
                db.execute(update(devices).values(token_expires_at=time.time() + 0.3))
            assert (await device.hear()).code == "revoked"
            with pytest.raises(InvalidStatus) as error:
                await device.connect(service.url)
            assert error.value.response.status_code == 401 and "expired" in error.value.response.body.decode()

    asyncio.run(main())


def test_a_hello_that_says_nothing_new_does_not_write(federation, enroll, running):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)

    async def main():
        async with running(directory, manifest) as service:
            writes = []
            event.listen(
                service.store.engine,
                "before_cursor_execute",
                lambda *a: a[2].startswith("UPDATE") and writes.append(a[2]),
            )
            for turn in range(4):
                assert (await device.connect(service.url)).type == "welcome"
                await service.until(lambda: "one" in service.federation.machine.members)
                await asyncio.sleep(0.05)
                assert len(writes) == 1, turn
            device.tasks = {"kinds": 11}
            assert (await device.connect(service.url)).type == "welcome"
            await service.until(lambda: len(writes) == 2)

    asyncio.run(main())
