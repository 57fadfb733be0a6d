"""The machine of rounds: exact actions for exact events, with times that are only numbers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import (
    CloseRound,
    Committed,
    Completed,
    FailRound,
    Finish,
    Hold,
    Joined,
    Left,
    OpenRound,
    Pause,
    Removed,
    Reported,
    Resume,
    Tick,
)
from coordinator.rounds import MAX_ATTEMPTS, History, Rounds
from tap_core.config import RoundsConfig
from tap_core.sampling import sample_devices

SEED = 7


def machine(**config):
    return Rounds(
        RoundsConfig(**{"total": 2, "clients_per_round": 2, "min_devices": 2, "deadline": 10, **config}), SEED
    )


def join(rounds, *devices, now=0.0):
    return [action for device in devices for action in rounds.handle(Joined(device), now)]


def test_the_first_round_waits_for_enough_members_and_samples_by_seed():
    rounds = machine(min_devices=3)
    assert join(rounds, "c", "a") == []
    assert rounds.phase == "waiting" and rounds.deadline() is None
    expected = sample_devices(SEED, 0, 0, ["a", "b", "c"], 2)
    assert join(rounds, "b", now=5.0) == [OpenRound(0, 0, expected)]
    assert rounds.deadline() == 15.0


def test_a_round_closes_at_once_when_all_sampled_have_reported():
    rounds = machine()
    assert join(rounds, "a", "b") == [OpenRound(0, 0, ("a", "b"))]
    assert rounds.awaits("a") and rounds.awaits("b")
    assert rounds.handle(Reported(0, "b"), 1.0) == []
    assert not rounds.awaits("b") and rounds.missing == ("a",)
    assert rounds.handle(Reported(0, "a"), 2.0) == [CloseRound(0, 0, ("a", "b"), (), ())]
    assert rounds.phase == "closing" and rounds.deadline() is None
    assert rounds.handle(Committed(0), 3.0) == [OpenRound(1, 0, ("a", "b"))]
    assert rounds.deadline() == 13.0


def test_at_the_deadline_a_quorum_is_enough():
    rounds = machine(min_updates=1)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    assert rounds.handle(Tick(), 9.99) == []
    assert rounds.handle(Tick(), 10.0) == [CloseRound(0, 0, ("b",), ("a",), ())]


def test_without_a_quorum_the_attempt_fails_and_says_who_was_missing():
    rounds = machine(min_updates=2)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    failed, opened = rounds.handle(Tick(), 10.0)
    assert failed == FailRound(0, 0, ("a",), (), "1 of the 2 updates needed; no update from a within 10 s")
    assert opened == OpenRound(0, 1, ("a", "b"))
    assert rounds.deadline() == 20.0 and rounds.round == 0


def test_an_update_of_a_failed_attempt_counts_when_the_device_is_sampled_again():
    rounds = machine(min_updates=2)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    rounds.handle(Tick(), 10.0)
    assert not rounds.awaits("b") and rounds.awaits("a")
    assert rounds.handle(Reported(0, "a"), 11.0) == [CloseRound(0, 1, ("a", "b"), (), ())]


def test_a_device_that_missed_a_deadline_while_away_is_not_sampled_until_it_is_back():
    rounds = machine(min_updates=1)
    join(rounds, "a", "b")
    rounds.handle(Left("a"), 1.0)
    assert rounds.roster == ("a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    assert rounds.handle(Tick(), 10.0) == [CloseRound(0, 0, ("b",), ("a",), ("a",))]
    assert rounds.handle(Committed(0), 11.0) == [OpenRound(1, 0, ("b",))]
    rounds.handle(Joined("a"), 12.0)
    assert rounds.roster == ("a", "b") and not rounds.awaits("a")


def test_when_everybody_is_away_the_federation_waits_instead_of_failing_on():
    rounds = machine(min_updates=1)
    join(rounds, "a", "b")
    rounds.handle(Left("a"), 1.0)
    rounds.handle(Left("b"), 1.0)
    assert [type(action) for action in rounds.handle(Tick(), 10.0)] == [FailRound]
    assert rounds.phase == "waiting" and rounds.deadline() is None
    assert rounds.handle(Joined("b"), 50.0) == [OpenRound(0, 1, ("b",))]


def test_a_device_that_leaves_and_returns_changes_nothing():
    rounds = machine()
    join(rounds, "a", "b")
    assert rounds.handle(Left("a"), 1.0) == [] and rounds.handle(Joined("a"), 2.0) == []
    assert rounds.awaits("a") and rounds.deadline() == 10.0


def test_after_too_many_failures_it_pauses_until_resumed():
    rounds = machine(min_updates=2)
    join(rounds, "a", "b")
    for attempt in range(MAX_ATTEMPTS - 1):
        failed, opened = rounds.handle(Tick(), 10.0 * (attempt + 1))
        assert (failed.attempt, opened.attempt) == (attempt, attempt + 1)
    failed, hold = rounds.handle(Tick(), 10.0 * MAX_ATTEMPTS)
    assert failed.attempt == MAX_ATTEMPTS - 1 and isinstance(hold, Hold) and "round 0" in hold.why
    assert rounds.paused == hold.why and rounds.deadline() is None
    assert rounds.handle(Resume(), 99.0) == [OpenRound(0, MAX_ATTEMPTS, ("a", "b"))]


def test_pausing_lets_the_open_round_close_and_opens_no_other():
    rounds = machine()
    join(rounds, "a", "b")
    assert rounds.handle(Pause("new disks"), 1.0) == [] and rounds.phase == "open"
    rounds.handle(Reported(0, "a"), 2.0)
    assert rounds.handle(Reported(0, "b"), 2.0) == [CloseRound(0, 0, ("a", "b"), (), ())]
    assert rounds.handle(Committed(0), 3.0) == [] and rounds.phase == "waiting"
    assert rounds.handle(Resume(), 9.0) == [OpenRound(1, 0, ("a", "b"))]


def test_a_revoked_device_is_neither_awaited_nor_counted():
    rounds = machine(clients_per_round=3, min_devices=3)
    join(rounds, "a", "b", "c")
    rounds.handle(Reported(0, "a"), 1.0)
    rounds.handle(Reported(0, "b"), 1.0)
    assert rounds.handle(Removed("a"), 2.0) == [] and rounds.missing == ("c",)
    assert rounds.handle(Removed("c"), 3.0) == [CloseRound(0, 0, ("b",), (), ())]


def test_revoking_below_the_quorum_fails_the_attempt_at_once():
    rounds = machine(min_updates=2)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "a"), 1.0)
    (failed,) = rounds.handle(Removed("b"), 2.0)
    assert failed == FailRound(0, 0, (), (), "1 of the 2 updates needed; revoked: b")
    assert rounds.phase == "waiting"


def test_the_end_is_finish_then_finished_when_all_members_are_done():
    rounds = machine(total=1)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "a"), 1.0)
    rounds.handle(Reported(0, "b"), 1.0)
    assert rounds.handle(Committed(0), 2.0) == [Finish()] and rounds.phase == "finishing"
    rounds.handle(Completed("a"), 3.0)
    assert rounds.phase == "finishing"
    rounds.handle(Completed("b"), 4.0)
    assert rounds.phase == "finished"


@pytest.mark.parametrize("event", [Reported(1, "a"), Reported(0, "z"), Committed(0), Completed("a"), Tick()])
def test_events_out_of_place_change_nothing(event):
    rounds = machine()
    join(rounds, "a", "b")
    before = replace(rounds.current)
    assert rounds.handle(event, 1.0) == []
    assert rounds.phase == "open" and rounds.missing == ("a", "b") and rounds.current == before


def test_an_open_attempt_is_restored_with_its_sample_and_its_whole_time():
    members = frozenset("abcd")
    history = History(0, 1, ("b", "d"), frozenset({"d"}), members)
    config = RoundsConfig(total=2, clients_per_round=2, deadline=10)
    rounds, actions = Rounds.restore(config, SEED, history, 100.0)
    assert actions == [] and rounds.missing == ("b",) and rounds.deadline() == 110.0
    assert rounds.handle(Reported(0, "b"), 101.0) == [CloseRound(0, 1, ("b", "d"), (), ())]


def test_a_round_whose_updates_were_complete_is_closed_again_after_a_restart():
    history = History(1, 0, ("a", "b"), frozenset("ab"), frozenset("ab"))
    rounds, actions = Rounds.restore(RoundsConfig(total=2), SEED, history, 0.0)
    assert actions == [CloseRound(1, 0, ("a", "b"), (), ())] and rounds.phase == "closing"


def test_between_rounds_a_restart_samples_as_if_nothing_had_happened():
    history = History(round=1, members=frozenset("abcde"))
    _, actions = Rounds.restore(RoundsConfig(total=2, min_devices=5), SEED, history, 0.0)
    assert actions == [OpenRound(1, 0, sample_devices(SEED, 1, 0, "abcde", 2))]


def test_a_pause_outlives_a_restart():
    history = History(round=1, members=frozenset("ab"), paused="new disks")
    rounds, actions = Rounds.restore(RoundsConfig(total=2), SEED, history, 0.0)
    assert actions == [] and rounds.paused == "new disks"


def test_after_the_last_round_a_restart_finishes():
    history = History(round=2, members=frozenset("ab"), done=frozenset("a"))
    rounds, actions = Rounds.restore(RoundsConfig(total=2), SEED, history, 0.0)
    assert actions == [Finish()] and rounds.phase == "finishing"
    rounds.handle(Completed("b"), 1.0)
    assert rounds.phase == "finished"


DEVICES = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.one_of(
    st.builds(Joined, DEVICES),
    st.builds(Left, DEVICES),
    st.builds(Reported, st.integers(0, 3), DEVICES),
    st.builds(Committed, st.integers(0, 3)),
    st.builds(Completed, DEVICES),
    st.builds(Removed, DEVICES),
    st.builds(Pause, st.just("why")),
    st.builds(Resume),
    st.builds(Tick),
)


@given(
    script=st.lists(st.tuples(EVENTS, st.floats(0, 20)), max_size=60),
    quorum=st.integers(1, 2),
    members=st.integers(1, 4),
)
def test_whatever_happens_rounds_go_up_by_one_and_every_attempt_ends_once(script, quorum, members):
    rounds = machine(total=3, min_updates=quorum, min_devices=members)
    now, opened, ended, committed = 0.0, [], [], []
    for event, wait in script:
        now += wait
        if isinstance(event, Committed) and rounds.phase == "closing" and event.round == rounds.round:
            committed.append(event.round)
        for action in rounds.handle(event, now):
            match action:
                case OpenRound(number, attempt, sampled):
                    opened.append((number, attempt))
                    assert 0 < len(sampled) <= 2 and set(sampled) <= rounds.members
                case CloseRound(number, attempt, contributors, missing, _):
                    ended.append((number, attempt))
                    assert len(contributors) >= quorum and not set(contributors) & set(missing)
                case FailRound(number, attempt, _, _, why):
                    ended.append((number, attempt))
                    assert why
        assert opened == sorted(set(opened)) and ended == opened[: len(ended)] and len(opened) - len(ended) <= 1
        assert committed == list(range(rounds.round))
        assert (rounds.phase == "open") == (len(opened) > len(ended))
        assert rounds.deadline() is None or rounds.deadline() > now
