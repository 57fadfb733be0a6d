"""How many connections there may be: the bookkeeping with a clock of its own, and the sockets."""

import asyncio
import contextlib
import errno
import resource
import socket

import pytest

from coordinator import gate as module
from coordinator.gate import Caps, Door, Gate, caps_within, network_of, raise_descriptor_limit, room_for_connections


def test_the_oldest_unadmitted_connection_of_an_address_makes_room():
    gate = Gate(Caps(total=100, unadmitted=50, per_address=3))
    assert [gate.enter(key, "10.0.0.1", float(key)) for key in range(3)] == [None] * 3
    assert gate.enter(50, "10.0.0.2", 3.0) is None
    assert gate.enter(3, "10.0.0.1", 4.0) == 0
    assert gate.enter(4, "10.0.0.1", 5.0) == 1
    assert len(gate) == 4


def test_the_oldest_of_all_makes_room_when_many_addresses_come():
    gate = Gate(Caps(total=100, unadmitted=3, per_address=2))
    victims = [gate.enter(key, f"10.0.0.{key}", float(key)) for key in range(6)]
    assert victims == [None, None, None, 0, 1, 2]


def test_an_admitted_connection_counts_only_in_all_and_is_never_turned_out():
    gate = Gate(Caps(total=4, unadmitted=4, per_address=1))
    for key in range(3):
        assert gate.enter(key, "10.0.0.1", 0.0) is None
        gate.admit(key)
    assert gate.enter(3, "10.0.0.1", 1.0) is None
    assert gate.enter(4, "10.0.0.2", 2.0) == 3
    gate.admit(4)
    assert gate.enter(5, "10.0.0.3", 3.0) == 5  # nobody else can go
    gate.leave(0)
    assert gate.enter(6, "10.0.0.3", 4.0) is None
    assert len(gate) == 4


def test_who_takes_too_long_must_go_and_who_has_left_is_not_admitted():
    gate = Gate(Caps(10, 10, 10), patience=10.0)
    for key in range(3):
        gate.enter(key, "10.0.0.1", float(key))
    gate.admit(1)
    gate.leave(2)
    gate.admit(2)
    assert gate.overdue(9.9) == [] and gate.overdue(10.0) == [0] and gate.overdue(1000.0) == []
    assert len(gate) == 1


def test_one_ipv6_machine_is_one_address():
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("fe80::1%eth0") == network_of("fe80::2") and network_of("somewhere") == "somewhere"


@pytest.mark.parametrize("descriptors", [64, 128, 256, 1024, 65536])
def test_there_is_room_for_files_beside_connections(descriptors):
    device, http = room_for_connections(descriptors)
    assert device >= 8 and http >= 4 and device + http <= descriptors - 32
    caps = caps_within(device)
    assert 1 <= caps.per_address <= caps.unadmitted <= caps.total
    if descriptors >= 1024:
        assert (caps.unadmitted, caps.per_address) == (256, 64)


def test_the_limit_of_open_files_is_raised_to_the_hard_one():
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
        assert raise_descriptor_limit(most=1000) == 1000 == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raise_descriptor_limit(most=600) == 1000  # never lowered
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def serve(door):
    (listener,) = door.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    return await asyncio.get_running_loop().create_server(Echo, sock=listener, backlog=16), port


async def is_served(port):
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        answer = await asyncio.wait_for(reader.read(1), 5)
        writer.close()
        return answer == b"x"
    return False


def test_idle_connections_are_shut_down_from_below_and_their_descriptors_come_back():
    async def main():
        out = []
        door = Door(Gate(Caps(total=40, unadmitted=20, per_address=10)), lambda: out.append(1))
        server, port = await serve(door)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        assert await is_served(port)
        await asyncio.sleep(0.05)
        assert len(out) >= 90 and len(door._open) <= 10
        for one in idle:
            one.close()
        await asyncio.sleep(0.05)
        assert len(door.gate) == 0 and door._open == {}
        server.close()
        door.close()

    asyncio.run(main())


def test_connections_that_show_no_token_in_time_are_shut_down(monkeypatch):
    async def main():
        now = [0.0]
        door = Door(Gate(Caps(10, 10, 10), patience=10.0), clock=lambda: now[0])
        server, port = await serve(door)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        now[0] = 10.0
        door._sweeping.cancel()
        door._sweep()
        assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()
        server.close()
        door.close()

    asyncio.run(main())


def test_without_a_descriptor_left_the_connection_is_closed_and_the_loop_does_not_spin(monkeypatch):
    async def main():
        door = Door(Gate(Caps(10, 10, 10)))
        server, port = await serve(door)
        plain, calls = socket.socket.accept, []

        def full(listener):
            calls.append(1)
            if len(calls) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return plain(listener)

        monkeypatch.setattr(module.socket.socket, "accept", full)
        assert not await is_served(port)
        assert await is_served(port)
        assert len(calls) < 20
        server.close()
        door.close()

    asyncio.run(main())


def test_a_name_with_several_addresses_is_served_on_one_port():
    async def main():
        door = Door(Gate(Caps(10, 10, 10)))
        listeners = door.listen("localhost", 0)
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        listeners[0].listen()
        with pytest.raises(OSError):
            door.listen("127.0.0.1", listeners[0].getsockname()[1])
        for listener in listeners:
            listener.close()
        door.close()

    asyncio.run(main())
