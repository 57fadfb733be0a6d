"""SIGKILL at bad moments: the coordinator in a round, a client in its training. The run ends with the same bits."""

import os
import signal
from collections.abc import Callable
from typing import Any

from small_federation import DEVICES, Site, check_equal


def test_a_killed_client_and_a_killed_coordinator_change_no_bit(make_site: Callable[[], Site], oracle: Any) -> None:
    site = make_site()
    site.prepare()
    coordinator = site.serve(site.port)
    clients = {device: site.join(device) for device in DEVICES}

    def training(phase: str, number: int) -> str | None:
        for device in DEVICES:
            progress = site.progress(device)
            if progress["phase"] == phase and progress["round"] == number and progress["step"] >= 1:
                return device
        return None

    killed: list[str] = []

    def kill_client(phase: str, number: int) -> bool:
        device = training(phase, number)
        if device is None:
            return False
        clients[device].send_signal(signal.SIGKILL)
        assert clients[device].wait() == -signal.SIGKILL
        killed.append(device)
        return True

    site.wait_for("a client in its personal phase", lambda: kill_client("personal", 0))
    clients[killed[0]] = site.join(killed[0])

    site.wait_for("training in the second round", lambda: training("federated", 1) is not None)
    coordinator.send_signal(signal.SIGKILL)
    assert coordinator.wait() == -signal.SIGKILL
    coordinator = site.serve(site.port)

    site.wait_for("a client in the third round", lambda: kill_client("federated", 2))
    os.kill(coordinator.pid, signal.SIGKILL)
    coordinator.wait()
    clients[killed[1]] = site.join(killed[1])
    coordinator = site.serve(site.port)

    site.wait_for("a client in stage 2", lambda: kill_client("student", 2) or kill_client("student", 1))
    clients[killed[2]] = site.join(killed[2])

    site.wait(*clients.values(), coordinator)
    assert len(killed) == 3
    check_equal(site, oracle)
