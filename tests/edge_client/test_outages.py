import pytest

from edge_client.outages import Backoff, Disconnected, Outages
from tap_core.errors import TapError

AWAY = Disconnected("Connection refused", reached=False)


def outages(lines: list[str], now: list[float], **settings) -> Outages:
    backoff = Backoff(uniform=lambda low, high: high)
    return Outages("ws://h:1", lines.append, backoff=backoff, clock=lambda: now[0], **settings)


def test_waits_grow_to_a_limit_and_never_end():
    backoff = Backoff(first=1, most=30, uniform=lambda low, high: high)
    assert [backoff.wait() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    for _ in range(5000):
        assert backoff.wait() == 30
    backoff.reset()
    assert backoff.wait() == 1


def test_waits_are_jittered():
    waits = [Backoff(first=8).wait() for _ in range(50)]
    assert len(set(waits)) > 40 and all(0.8 <= wait <= 8 for wait in waits)


def test_an_outage_is_said_once_and_its_end_too():
    lines: list[str] = []
    now = [0.0]
    away = outages(lines, now)
    assert [away.next_wait(AWAY) for _ in range(3)] == [1, 2, 4]
    assert lines == ["cannot reach the coordinator at ws://h:1 (Connection refused); retrying until it answers"]
    away.end()
    assert lines[1:] == ["connected"] and away.seconds() == 0
    away.end()
    assert away.next_wait(Disconnected("reset", reached=True)) == 1
    assert lines[2:] == ["lost the coordinator at ws://h:1 (reset); retrying until it answers"]


def test_nothing_is_said_when_all_goes_well():
    lines: list[str] = []
    outages(lines, [0.0]).end()
    assert lines == []


def test_giving_up_counts_from_the_start_of_the_outage():
    now = [100.0]
    away = outages([], now, max_wait=5)
    assert away.next_wait(AWAY) == 1
    now[0] = 104.5
    assert away.next_wait(AWAY) == 0.5
    now[0] = 105
    with pytest.raises(
        TapError, match=r"cannot reach the coordinator at ws://h:1 \(Connection refused\); check"
    ) as caught:
        away.next_wait(AWAY)
    assert caught.value.exit_code == 1
    away.end()
    now[0] = 200
    assert away.next_wait(AWAY) == 1


def test_no_wait_gives_up_at_once():
    with pytest.raises(TapError):
        outages([], [0.0], max_wait=0).next_wait(AWAY)
