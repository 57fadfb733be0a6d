"""SIGKILL at bad moments: the coordinator in a round, a client in its training. The run ends with the same bits."""

import signal
import time
from collections.abc import Callable

from small_federation import LIMIT, Oracle, Process, Site, check_equal

DEATHS = {
    "coordinator": (
        "coordinator has an update",
        "coordinator has recorded an update",
        "coordinator has aggregated",
        "coordinator has committed",
    ),
    "asker": ("client trains personal", "client has trained", "client trains student"),
    "painter": ("client has trained", "client exports"),
    "reader": ("client trains federated",),
}
"""The points of `dying.py` at which each process is killed, one after the other; the last life of each is whole."""


def test_killed_clients_and_a_killed_coordinator_change_no_bit(make_site: Callable[..., Site], oracle: Oracle) -> None:
    site = make_site(export=["painter"])
    site.prepare()
    deaths = {name: list(points) for name, points in DEATHS.items()}

    def start(name: str) -> Process:
        point = deaths[name].pop(0) if deaths[name] else None
        return site.serve(site.port, point) if name == "coordinator" else site.join(name, point)

    processes = {name: start(name) for name in deaths}
    lives = dict.fromkeys(deaths, 1)
    end = time.monotonic() + LIMIT
    while codes := {name: process.poll() for name, process in processes.items()}:
        assert time.monotonic() < end, f"not over within {LIMIT} s: {lives}\n{site.logs()}"
        for name, code in codes.items():
            if code == -signal.SIGKILL:
                processes[name] = start(name)
                lives[name] += 1
            elif code is not None:
                assert code == 0, f"{name} ended with {code}\n{site.logs()}"
                del processes[name]
        time.sleep(0.05)
    assert lives == {name: len(points) + 1 for name, points in DEATHS.items()}, site.logs()
    check_equal(site, oracle.result)
