"""Owners come and go between rounds, and processes are killed: still the simulation's bits."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_federation import LIMIT, TABLES, Site, check_equal, digests_of

ENROLLED = {0: ("asker", "painter"), 1: ("asker", "painter", "reader")}
LATER = ("asker", "reader")
TEXT, IMAGE = "encoder/text", "encoder/image"


@pytest.fixture
def site(tmp_path: Path, mini_config: Callable[..., Any], mini_examples: Callable[..., Any]) -> Iterator[Site]:
    rounds = {**TABLES["rounds"], "total": 4, "clients_per_round": 3, "min_devices": 2}
    made = Site(tmp_path, mini_config(**{**TABLES, "rounds": rounds}), mini_examples)
    yield made
    made.close()


def simulated(site: Site) -> tuple[Any, list[Any]]:
    from deploy.tap.federations import find_devices, load_federation, load_participants, version_0
    from tap_core.simulation.in_process import simulate

    config, rounds = load_federation(site.federation), []
    participants = load_participants(config, find_devices(site.devices, site.federation))
    result = simulate(
        config,
        participants,
        version_0(config),
        on_round=lambda _, outcomes: rounds.append(dict(outcomes)),
        enrolled=lambda t: ENROLLED.get(t, LATER),
    )
    return result, rounds


def until(condition: Callable[[], bool], site: Site) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, site.logs()
        time.sleep(0.05)


def test_owners_that_come_and_go_give_the_simulations_bits(site: Site) -> None:
    """encoder/text is the asker's alone until the reader comes after round 0; encoder/image the asker's and the
    painter's until the painter is revoked after round 1. The coordinator is killed at both turns, and the asker with
    its third round durable and not yet sent."""
    site.prepare()
    coordinator = site.serve(site.port, "coordinator has committed round 0")
    asker, _ = site.join("asker"), site.join("painter")
    until(lambda: coordinator.poll() is not None, site)
    assert coordinator.returncode == -signal.SIGKILL, site.logs()

    site.run("coordinator.cli", "pause", site.directory)
    coordinator = site.serve(site.port, "coordinator has committed round 1")
    reader = site.join("reader")

    def is_there() -> bool:
        return "reader" in json.loads(site.run("coordinator.cli", "status", site.directory, "--json"))["roster"]

    until(is_there, site)
    site.run("coordinator.cli", "resume", site.directory)
    until(lambda: coordinator.poll() is not None, site)
    assert coordinator.returncode == -signal.SIGKILL, site.logs()

    asker.send_signal(signal.SIGKILL)
    asker.wait()
    site.run("coordinator.cli", "revoke", "painter", site.directory)
    coordinator, asker = site.serve(site.port), site.join("asker", "client has trained")
    until(lambda: asker.poll() is not None, site)
    assert asker.returncode == -signal.SIGKILL, site.logs()
    site.wait(site.join("asker"), reader, coordinator)

    result, rounds = simulated(site)
    check_equal(site, result)
    assert [TEXT in turn["asker"].state.home for turn in rounds] == [True, False, False, False]
    assert [IMAGE in turn["asker"].state.home for turn in rounds] == [False, False, True, True]
    assert set(result.devices) == set(LATER) and digests_of(result)[TEXT] != digests_of(result)[IMAGE]
