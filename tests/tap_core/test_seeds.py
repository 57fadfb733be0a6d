"""Seeded sampling of devices."""

from tap_core.samplers.uniform import sample_devices
from tap_core.seeds import derive_seed

ROSTER = [f"device-{i}" for i in range(10)]


def test_a_sample_is_repeatable_and_does_not_depend_on_the_order_of_arrival() -> None:
    first = sample_devices(7, 3, 0, ROSTER, 4)
    assert first == sample_devices(7, 3, 0, list(reversed(ROSTER)), 4)
    assert len(set(first)) == 4 and list(first) == sorted(first)


def test_rounds_attempts_and_seeds_draw_differently() -> None:
    draws = {sample_devices(s, r, a, ROSTER, 4) for s, r, a in [(7, 3, 0), (7, 4, 0), (7, 3, 1), (8, 3, 0)]}
    assert len(draws) == 4


def test_every_device_is_drawn_about_equally_often() -> None:
    counts = dict.fromkeys(ROSTER, 0)
    for number in range(1000):
        for device in sample_devices(1, number, 0, ROSTER, 2):
            counts[device] += 1
    assert min(counts.values()) > 150 and max(counts.values()) < 250


def test_a_small_roster_is_taken_whole() -> None:
    assert sample_devices(1, 0, 0, ["b", "a"], 5) == ("a", "b")


def test_seeds_are_the_same_in_every_process() -> None:
    assert derive_seed(1, "a", 2) == 938383822073135179
