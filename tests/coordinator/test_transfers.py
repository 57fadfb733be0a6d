"""The memory of transfers: bounded for all together, in turn, without a deadlock; cut uploads wait on the disk."""

import asyncio
import contextlib
import os
import stat

import pytest
from websockets.exceptions import ConnectionClosed

from coordinator import device_server as plane
from coordinator import device_session as sessions
from coordinator.blobs import BlobStore
from coordinator.transfers import KEPT_SECONDS, Budget, Holding, left_behind, put_away, take_up
from protocol.messages import CHUNK
from protocol.tensors import digest_of
from protocol.transfer import Incoming

TEXTS = {"senses": 30}


def test_who_finds_no_room_waits_in_turn():
    async def main():
        budget, order = Budget(100), []

        async def transfer(name, size):
            async with budget.hold(size):
                order.append(name)
                assert budget.used <= 100
                await asyncio.sleep(0)

        first = await budget.take(90)
        works = [
            asyncio.ensure_future(transfer(name, size)) for name, size in (("big", 95), ("small", 5), ("all", 500))
        ]
        await asyncio.sleep(0)
        assert order == []  # the small one would fit, but it is not its turn
        budget.give(first)
        await asyncio.gather(*works)
        assert order == ["big", "small", "all"] and budget.used == 0

    asyncio.run(main())


def test_who_gives_up_waiting_takes_nothing():
    async def main():
        budget = Budget(10)
        held = await budget.take(10)
        waiting = [asyncio.ensure_future(budget.take(6)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        budget.give(held)
        assert await waiting[1] == 6 and budget.used == 6
        budget.give(6)
        held = await budget.take(10)
        last = asyncio.ensure_future(budget.take(6))
        await asyncio.sleep(0)
        budget.give(held)  # granted, and cancelled before it heard of it
        last.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await last
        assert budget.used == 0

    asyncio.run(main())


def test_no_connection_holds_more_than_its_share_and_an_end_gives_all_back():
    async def main():
        budget = Budget(100)
        one = Holding(budget)
        await one.take("a", 20)
        assert not one.has_room(10)
        second = asyncio.ensure_future(one.take("b", 10))
        await asyncio.sleep(0)
        assert budget.used == 20
        one.give(["a"])
        await second
        assert budget.used == 10
        await asyncio.wait_for(Holding(budget).take("whole", 90), 1)  # a single blob may be larger than a share
        one.end()
        assert budget.used == 90

    asyncio.run(main())


def test_pieces_of_a_cut_upload_lie_in_private_files_until_they_are_old(tmp_path):
    blobs, data = BlobStore(tmp_path), b"x" * 1000
    digest = digest_of(data)
    incoming = Incoming(digest, len(data))
    incoming.add(0, data[:600])
    partial = {digest: incoming, "b" * 64: Incoming("b" * 64, 5)}
    put_away(blobs, "desk", partial, now=0)
    (part,) = (tmp_path / "incoming" / "desk").iterdir()
    assert partial == {} and left_behind(blobs, "desk") == {digest}
    assert part.read_bytes() == data[:600] and stat.S_IMODE(part.stat().st_mode) == 0o600
    assert take_up(blobs, "desk", digest, 600) is None  # no part of so small a blob
    again = take_up(blobs, "desk", digest, 1000)
    assert again.offset == 600 and not part.exists()
    again.add(600, data[600:])
    assert again.data() == data
    part.write_bytes(b"old")
    os.utime(part, (0, 0))
    put_away(blobs, "other", {}, now=KEPT_SECONDS - 1)
    assert part.exists()
    put_away(blobs, "other", {}, now=KEPT_SECONDS + 1)
    assert not part.exists()


def one_round(federation, **options):
    return federation(total=1, clients_per_round=1, min_devices=1, **options)


def test_a_cut_upload_goes_on_after_a_restart_of_the_coordinator(federation, enroll, running):
    directory, manifest = one_round(federation, shapes={"large": (600, 1024)})
    device = enroll(directory, manifest, "one", TEXTS)

    async def first():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            blobs = await device.trained(0)
            await device.say(device.update(0, blobs))
            want = await device.hear()
            data = next(data for data in blobs.values() if digest_of(data) == want.digest)
            await device.socket.send(next(iter(device.session.send_blob(want.digest, data, 0))))
            partial = service.plane.links["one"].partial
            await service.until(lambda: any(incoming.offset for incoming in partial.values()))
            return blobs, want.digest

    async def second(blobs, digest):
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            await device.hear()
            await device.say(device.update(0, blobs))
            wants = {}
            while len(wants) < len(blobs):
                event = await device.hear()
                wants[event.digest] = event.offset
            assert wants[digest] == CHUNK
            await device.socket.close()
            await device.take_part(service.url)
            assert not list((service.federation.blobs.directory / "incoming").rglob("*.part"))

    device.partial = {}
    asyncio.run(second(*asyncio.run(first())))


@pytest.mark.parametrize("memory", [3_000_000, 6_000_000])
def test_devices_take_part_with_next_to_no_memory_for_transfers(federation, enroll, running, monkeypatch, memory):
    """Blobs of 2.4 MB, and room for one or two: everybody waits in turn, and nobody for ever."""
    monkeypatch.setattr(plane, "TRANSFER_MEMORY", memory)
    shapes = {"large": (600, 1024)}
    directory, manifest = federation(total=1, clients_per_round=3, min_devices=3, shapes=shapes)
    devices = [enroll(directory, manifest, name, TEXTS, scale=0.1) for name in ("one", "two", "three")]

    async def main():
        async with running(directory, manifest) as service:
            budget = service.plane._budget = Budget(memory)
            most, take = [0], budget.take

            async def counted(size):
                taken = await take(size)
                most[0] = max(most[0], budget.used)
                return taken

            budget.take = counted
            await asyncio.wait_for(asyncio.gather(*(device.take_part(service.url) for device in devices)), 60)
            assert 0 < most[0] <= memory and budget.used == 0

    asyncio.run(main())


def test_small_blobs_that_wait_for_their_batch_do_not_block_the_next(federation, enroll, running):
    """Many blobs of 100 kB, less than a batch together, and no room for all of them."""
    directory, manifest = one_round(federation, shapes={"values": (25_000,)})
    device = enroll(directory, manifest, "one", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            budget = service.plane._budget = Budget(1_000_000)
            await asyncio.wait_for(device.take_part(service.url), 30)
            assert budget.used == 0

    asyncio.run(main())


def test_an_upload_that_stands_still_gives_its_memory_to_others(federation, enroll, running, monkeypatch):
    monkeypatch.setattr(sessions, "STALL_SECONDS", 0.4)
    directory, manifest = one_round(federation, shapes={"large": (600, 1024)})
    device = enroll(directory, manifest, "one", TEXTS)

    async def main():
        async with running(directory, manifest) as service:
            await device.connect(service.url)
            blobs = await device.trained(0)
            await device.say(device.update(0, blobs))
            for _ in blobs:
                assert (await device.hear()).type == "want"
            with pytest.raises(ConnectionClosed) as error:
                await device.hear()
            assert error.value.rcvd.code == 1008 and "no progress" in error.value.rcvd.reason
            await service.until(lambda: service.plane._budget.used == 0)

    asyncio.run(main())
