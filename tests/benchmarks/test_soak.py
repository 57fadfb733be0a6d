"""The soak runs and finds what it is to find: a short one from end to end, and its judgement on made-up facts."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_peers import MEMBER_ACTS, OUTSIDER_ACTS
from soak_facts import (
    Absence,
    Sample,
    Values,
    differences,
    growth,
    is_expected,
    kill_times,
    longest_gap,
    slope,
    wrong_contributors,
)
from soak_peers import CHANGE, Journal, trained
from soak_report import is_a_fault

from protocol.tensors import ComponentTensors, digest_of, encode_tensors

ROOT = Path(__file__).parents[2]
HONEST = ("honest-0", "honest-1")


def test_a_short_soak(tmp_path):
    figures = tmp_path / "figures.json"
    size = ["--minutes", "0.16", "--devices", "3", "--deadline", "7", "--values", "500", "--bare", "20"]
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), *size, "--lives", "12", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "ok"
    facts = json.loads(figures.read_text())
    assert facts["committed"] >= 1 and facts["undisturbed"] == "equal to the bit" and facts["broken"] == []
    assert facts["coordinator_kills"] >= 1 and facts["device_kills"] >= 1 and facts["renewals"] >= 1
    assert facts["honest"]["accepted"] >= facts["committed"]
    begun = {outcome.partition(":")[0] for outcome in facts["hostile"]}
    assert begun >= {"wrong_tokens", "no_http", "claims", "garbage_first", "heartbeats", "abandon"}
    assert begun <= MEMBER_ACTS.keys() | OUTSIDER_ACTS.keys()
    assert 20 < facts["peak_megabytes"] < 400 and facts["before"]["descriptors"] > 5 and facts["after"]["disk"] > 0


def component(values):
    return encode_tensors(ComponentTensors("c", {"t": np.asarray(values, np.float32)}))


def run_of(final, digests=None):
    """Two rounds of one component."""
    chain = {("c", 0): "a" * 64, ("c", 1): "b" * 64, ("c", 2): digest_of(final)}
    return Values(chain if digests is None else digests, {"c": final})


def test_equal_runs_do_not_differ():
    assert differences(run_of(component([1, 2, 3])), run_of(component([1, 2, 3]))) == []


@pytest.mark.parametrize("bit", [0, 7, 31])
def test_one_changed_bit_is_found_by_the_digest(bit):
    data = component([1, 2, 3])
    changed = bytearray(data)
    changed[-4 + bit // 8] ^= 1 << bit % 8
    assert differences(run_of(data), run_of(bytes(changed))) == ["c: differs from version 2 on"]


def test_one_changed_bit_is_found_even_if_the_digests_lie():
    data = component([1, 2, 3])
    changed = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    lying = run_of(changed, run_of(data).digests)
    assert differences(run_of(data), lying) == [f"c: byte {len(data) - 2} differs"]


def test_the_first_version_that_differs_is_named():
    one, other = run_of(component([1])), run_of(component([2]))
    earlier = {**other.digests, ("c", 1): "c" * 64}
    assert differences(one, Values(earlier, other.final)) == ["c: differs from version 1 on"]


def test_versions_that_only_one_still_knows_are_not_compared():
    one = run_of(component([1]))
    pruned = Values({("c", 2): one.digests["c", 2]}, one.final)
    assert differences(one, pruned) == []


def test_another_number_of_versions_and_a_missing_component_are_found():
    one = run_of(component([1]))
    shorter = Values({key: value for key, value in one.digests.items() if key[1] < 2}, one.final)
    assert differences(one, shorter) == ["c: version 2 in one, 1 in the other"]
    assert differences(one, Values({}, {})) == ["c: version 2 in one, None in the other"]


def test_training_can_be_repeated_and_spreads_a_changed_bit_over_every_value():
    data = component(np.linspace(-1, 1, 1000))
    changed = data[:-1] + bytes([data[-1] ^ 1])
    values = [np.frombuffer(trained("d", 3, "c", given)[-4000:], "<f4") for given in (data, data, changed)]
    assert np.array_equal(values[0], values[1])
    assert np.mean(values[0] == values[2]) < 0.01
    change = np.abs(values[0] - np.frombuffer(data[-4000:], "<f4"))
    assert change.min() > 0.4 * CHANGE and change.max() < 1.6 * CHANGE
    assert trained("d", 3, "c", data) != trained("d", 4, "c", data) != trained("e", 4, "c", data)


def test_a_device_that_was_killed_goes_on_with_its_update_and_with_no_other(tmp_path):
    Journal(tmp_path / "update").save(4, {"c": "aa"}, {"c": b"bytes"})
    again = Journal(tmp_path / "update")
    assert again.load(4, {"c": "aa"}) == {"c": b"bytes"}
    assert again.load(5, {"c": "aa"}) is None and again.load(4, {"c": "bb"}) is None
    assert Journal(tmp_path / "other").load(4, {"c": "aa"}) is None


def attempt(status="committed", contributors=HONEST, missing=(), opened_at=100.0, closed_at=110.0):
    facts = {"round": 3, "attempt": 0, "status": status, "contributors": contributors, "missing": missing}
    return {**facts, "opened_at": opened_at, "closed_at": closed_at}


def test_a_round_that_counted_a_stranger_or_lacked_an_honest_device_is_named():
    attempts = [attempt(), attempt(contributors=(*HONEST, "thief-1")), attempt(contributors=HONEST[:1])]
    lines = wrong_contributors([*attempts, attempt(status="failed", contributors=())], HONEST)
    assert lines == ["round 3 counted, or lacks, thief-1", "round 3 counted, or lacks, honest-1"]


def test_a_failure_is_expected_only_of_a_device_that_was_kept_away():
    away = [Absence("honest-0", 90.0, 105.0)]
    failed = attempt(status="failed", missing=("honest-0", "silent-2"))
    assert is_expected(failed, HONEST, away, 5.0)
    assert not is_expected(failed, HONEST, [], 5.0)
    assert not is_expected(failed, HONEST, [Absence("honest-0", 20.0, 94.0)], 5.0)
    assert is_expected(failed, HONEST, [Absence("honest-0", 20.0, 94.0)], 7.0)
    assert not is_expected({**failed, "missing": HONEST}, HONEST, away, 5.0)
    assert is_expected({**failed, "missing": ("silent-2",)}, HONEST, away, 5.0)  # opened while it was not in the roster


def test_growth_is_a_slope_in_ten_minutes_that_a_spike_does_not_move():
    life = [Sample(float(at), 1000 * at + 10**9 * (at == 70), 20, 0) for at in range(100)]
    assert growth(life, "memory") == pytest.approx(600_000)
    assert growth(life, "descriptors") == 0
    assert growth(life[:50], "memory") is None and growth([], "memory") is None
    assert slope([(0.0, 5.0)]) == 0 and slope([(float(x), 3.0 * x) for x in range(5000)]) == pytest.approx(3)


def test_gaps_and_kills():
    commits = [attempt(closed_at=at) for at in (10.0, 14.0, 30.0)]
    assert longest_gap([*commits, attempt(status="failed", closed_at=20.0)]) == 16 and longest_gap([]) == 0
    for seed in range(50):
        times = kill_times(random.Random(seed), 5.0, 12.0)
        assert len(times) >= 1 and min(times) > 5 and max(times) < 12
    assert 5 < len(kill_times(random.Random(0), 0.0, 1200.0)) < 60


def test_what_must_not_happen_to_an_honest_device():
    faults = [("rejected", "tensors"), ("disconnected", "HTTP 401"), ("disconnected", "closed 1002")]
    fine = [("rejected", "late"), ("disconnected", "HTTP 503"), ("disconnected", "bye shutdown"), ("accepted", "")]
    assert all(is_a_fault(*fault) for fault in faults) and not any(is_a_fault(*event) for event in fine)
