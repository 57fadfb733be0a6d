"""Whatever error one device meets in whatever place: its connection ends, and the service and the others go on."""

import asyncio

import pytest
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from websockets.exceptions import ConnectionClosed, InvalidStatus

import coordinator.device_session
import coordinator.federation
import coordinator.uploads
from coordinator.blobs import BlobError
from coordinator.supervisor import Supervisor
from coordinator.uploads import Upload
from protocol.errors import RemoteProtocolError
from protocol.messages import Heartbeat

SECRET = "/srv/operator/secret"
ERRORS = [
    OSError(28, f"No space left on device: {SECRET}"),
    MemoryError(SECRET),
    ValueError(SECRET),
    KeyError(SECRET),
    RuntimeError(SECRET),
    AssertionError(SECRET),
    SQLAlchemyError(SECRET),
    BlobError(f"{SECRET} is damaged", "f" * 64),
    RemoteProtocolError("strange"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, SECRET),
    asyncio.TimeoutError(SECRET),
    RecursionError(SECRET),
]


class Fault:
    """Raises the error that it is armed with, except for the other device, and otherwise does what it stands for."""

    error = None

    def of(self, real):
        def function(*arguments, **options):
            if self.error is not None and "two" not in arguments:
                raise self.error
            return real(*arguments, **options)

        return function


def faulty(service, monkeypatch, place, fault):
    """Put the fault into a place that is reached for the sake of one device."""
    federation, plane = service.federation, service.plane
    owner, name = {
        "token check": (plane.admission, "check"),
        "link": (plane, "_talk"),
        "hello": (coordinator.device_session, "check_hello"),
        "register": (service.store.registry, "register"),
        "join": (federation, "join"),
        "assignment": (federation, "assignment"),
        "blob to send": (federation.blobs, "get_some"),
        "update's claims": (coordinator.uploads, "check_update"),
        "lacking": (Upload, "lacking"),
        "stage": (federation.blobs, "stage"),
        "tensors": (coordinator.uploads, "check_component"),
        "save": (Upload, "save"),
        "settle": (Upload, "settle"),
        "accept": (federation, "accept"),
        "add update": (service.store, "add_update"),
        "complete": (service.store.registry, "complete"),
        "leave": (federation, "leave"),
        "heartbeat": (coordinator.device_session.Bucket, "take"),
    }[place]
    monkeypatch.setattr(owner, name, fault.of(getattr(owner, name)))


PLACES = [
    *("token check", "link", "hello", "register", "join", "assignment", "blob to send", "update's claims", "lacking"),
    *("stage", "tensors", "save", "settle", "accept", "add update", "complete", "leave", "heartbeat"),
]


async def hear_all(device):
    while True:
        await device.hear()


async def meet_it(device, url, place, fault, error):
    """Go on until the error ends the connection; returns what the device was told."""
    device.cache.clear()
    if place in ("leave", "heartbeat"):
        assert (await device.connect(url)).type == "welcome"
        fault.error = error
        await device.say(Heartbeat(phase="x", step=0, steps=0))
        if place == "leave":
            await device.socket.close()
            return ""
    fault.error = error
    with pytest.raises((ConnectionClosed, InvalidStatus)) as raised:
        await (hear_all(device) if place == "heartbeat" else device.take_part(url))
    if isinstance(raised.value, InvalidStatus):
        assert raised.value.response.status_code == 503
        return raised.value.response.body.decode()
    assert raised.value.rcvd.code == (1002 if isinstance(error, RemoteProtocolError) and place != "link" else 1011)
    return raised.value.rcvd.reason


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_any_kind_in_any_place_ends_one_connection_only(federation, enroll, running, monkeypatch, place):
    directory, manifest = federation(total=1, clients_per_round=2, min_devices=2, min_updates=2)
    one, two = enroll(directory, manifest, "one", {"kinds": 10}), enroll(directory, manifest, "two", {"senses": 30})

    async def main():
        async with running(directory, manifest) as service:
            other = asyncio.ensure_future(two.take_part(service.url))
            await service.until(lambda: "two" in service.federation.machine.members)
            await one.connect(service.url)  # opens the round
            assert (await one.hear()).type == "train"
            await service.until(lambda: "two" in service.federation.machine.current.reported)
            fault = Fault()
            faulty(service, monkeypatch, place, fault)
            for error in ERRORS:
                told = await meet_it(one, service.url, place, fault, error)
                if place == "leave":
                    await service.until(lambda: service.plane.links["one"].session is None)
                fault.error = None
                assert SECRET not in told, (place, error)
                assert not service.federation.stopping.is_set(), (place, error)
                assert not other.done() or place == "complete", (place, error)  # there it may be done already
            assert (await asyncio.wait_for(one.take_part(service.url), 10)).code == "done"
            assert (await asyncio.wait_for(other, 10)).code == "done"
            assert service.federation.ended.is_set() and not service.federation.stopping.is_set()

    asyncio.run(main())


def test_the_error_of_a_call_is_its_callers_alone_and_that_of_the_service_stops_it():
    async def fail():
        raise RuntimeError("broken")

    async def main():
        supervisor = Supervisor()
        with pytest.raises(RuntimeError):
            await supervisor.whole(fail())
        assert not supervisor.stopping.is_set()
        await supervisor.close()
        supervisor = Supervisor()
        supervisor.spawn(fail())
        await asyncio.wait_for(supervisor.stopping.wait(), 5)
        with pytest.raises(RuntimeError, match="broken"):
            await supervisor.close()

    asyncio.run(main())


def test_the_work_of_a_caller_that_is_gone_goes_on_to_its_end(capsys):
    async def main():
        supervisor, done = Supervisor(), []
        release = asyncio.Event()

        async def work():
            await release.wait()
            done.append(1)
            raise OSError("late")

        caller = asyncio.ensure_future(supervisor.whole(work()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        release.set()
        await asyncio.sleep(0.01)
        assert done == [1] and not supervisor.stopping.is_set()
        await supervisor.close()

    asyncio.run(main())
    assert "OSError: late" in capsys.readouterr().out


def test_a_database_that_is_away_for_a_moment_does_not_stop_the_service(federation, enroll, running, monkeypatch):
    directory, manifest = federation(total=1, clients_per_round=1, min_devices=1)
    device = enroll(directory, manifest, "one", {"kinds": 10})
    monkeypatch.setattr(coordinator.federation, "POLL_SECONDS", 0.01)

    async def main():
        async with running(directory, manifest) as service:
            seen, real = [], service.store.control

            def away():
                seen.append(1)
                if len(seen) < 4:
                    raise OperationalError("SELECT", {}, OSError("connection refused"))
                return real()

            monkeypatch.setattr(service.store, "control", away)
            await service.until(lambda: len(seen) > 5)
            assert not service.federation.stopping.is_set()
            assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())
