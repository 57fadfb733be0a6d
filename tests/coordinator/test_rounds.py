"""The machine of rounds: exact actions for exact events, with times that are only numbers."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import (
    CloseRound,
    Committed,
    Completed,
    Declined,
    FailRound,
    Finish,
    Hold,
    Joined,
    Left,
    Lost,
    OpenRound,
    Pause,
    Progressed,
    Rejected,
    Removed,
    Renewed,
    Reported,
    Resume,
    Spent,
    Tick,
)
from coordinator.rounds import MAX_ATTEMPTS, MAX_MISSED, History, Rounds
from tap_core.samplers.uniform import sample_devices
from tap_core.settings.federation import RoundsConfig

SEED = 7


def machine(**config):
    return Rounds(
        RoundsConfig(**{"total": 2, "clients_per_round": 2, "min_devices": 2, "deadline": 10, **config}), SEED
    )


def at_work(rounds, *devices, now=0.0):
    """The devices report progress."""
    return [action for device in devices for action in rounds.handle(Progressed(device), now)]


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
    assert rounds.handle(Committed(1), 2.0) == [] and rounds.phase == "closing"  # a commit of another round
    assert rounds.handle(Committed(0), 3.0) == [OpenRound(1, 0, ("a", "b"))]
    assert rounds.deadline() == 13.0


def test_at_the_deadline_a_quorum_is_enough():
    rounds = machine(min_updates=1)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    assert rounds.handle(Tick(), 9.99) == []
    assert rounds.handle(Tick(), 10.0) == [CloseRound(0, 0, ("b",), ("a",), (), ("a",))]
    assert rounds.roster == ("a", "b")  # a is connected, and has missed only one deadline


def test_without_a_quorum_the_attempt_fails_and_says_who_was_missing():
    rounds = machine(min_updates=2)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    failed, opened = rounds.handle(Tick(), 10.0)
    assert failed == FailRound(0, 0, ("a",), (), "1 of the 2 updates needed; no update from a within 10 s", ("a",))
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
    assert rounds.handle(Tick(), 10.0) == [CloseRound(0, 0, ("b",), ("a",), ("a",), ("a",))]
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
        failed, *opened = [*rounds.handle(Tick(), 10.0 * (attempt + 1)), *at_work(rounds, "a", "b")]
        assert (failed.attempt, [action.attempt for action in opened]) == (attempt, [attempt + 1])
    failed, hold = [*rounds.handle(Tick(), 10.0 * MAX_ATTEMPTS), *at_work(rounds, "a", "b")]
    assert failed.attempt == MAX_ATTEMPTS - 1 and isinstance(hold, Hold) and "round 0" in hold.why
    assert rounds.paused == hold.why and rounds.deadline() is None
    assert rounds.handle(Resume(), 99.0) == [OpenRound(0, MAX_ATTEMPTS, ("a", "b"))]


def test_a_connected_device_that_misses_two_deadlines_in_a_row_is_away_until_it_moves(event_of_return):
    """Such a device held every round to its deadline, and with a quorum of all it paused the federation."""
    rounds = machine(total=9, min_updates=1)
    join(rounds, "a", "b")
    for number, away in ((0, ()), (1, ("a",))):
        rounds.handle(Reported(number, "b"), 10.0 * number + 1)
        (closed,) = rounds.handle(Tick(), 10.0 * (number + 1))
        assert closed == CloseRound(number, 0, ("b",), ("a",), away, ("a",))
        rounds.handle(Committed(number), 10.0 * (number + 1))
    assert rounds.current.sampled == ("b",) and rounds.missed == {"a": 2}
    rounds.handle(event_of_return, 21.0)
    rounds.handle(Reported(2, "b"), 21.0)
    assert rounds.handle(Committed(2), 21.0) == [OpenRound(3, 0, ("a", "b"))]
    rounds.handle(Reported(3, "b"), 22.0)
    (closed,) = rounds.handle(Tick(), 99.0)
    assert closed.away == ("a",)  # the third in a row
    rounds.handle(Committed(3), 99.0)
    rounds.handle(event_of_return, 99.0)
    rounds.handle(Reported(4, "b"), 99.0)
    rounds.handle(Committed(4), 99.0)
    rounds.handle(Reported(5, "a"), 99.0)
    assert rounds.missed == {}


def test_a_deadline_is_missed_once_even_if_the_round_closes_twice():
    """An update turned out to be damaged when it was to be averaged."""
    rounds = machine(total=9, min_updates=1)
    join(rounds, "a", "b")
    rounds.handle(Reported(0, "b"), 1.0)
    assert rounds.handle(Tick(), 10.0) == [CloseRound(0, 0, ("b",), ("a",), (), ("a",))]
    (failed, _) = rounds.handle(Lost(0, ("b",)), 11.0)
    assert failed.late == ("a", "b") and rounds.missed == {"a": 1, "b": 1} and rounds.away == set()


def test_a_rejected_update_is_a_strike_and_is_not_waited_for():
    rounds = machine(total=9)
    join(rounds, "a", "b")
    assert rounds.handle(Rejected(0, "a"), 1.0) == []
    assert not rounds.awaits("a") and rounds.strikes == {"a": 1} and rounds.roster == ("b",)
    assert rounds.handle(Reported(0, "b"), 1.0) == [CloseRound(0, 0, ("b",), ("a",), ())]
    assert rounds.handle(Committed(0), 2.0) == [OpenRound(1, 0, ("b",))]
    rounds.handle(Joined("a"), 3.0)
    assert rounds.roster == ("a", "b") and rounds.strikes == {"a": 1}
    rounds.handle(Reported(1, "b"), 3.0)
    rounds.handle(Committed(1), 3.0)
    rounds.handle(Reported(2, "a"), 4.0)
    assert rounds.strikes == {}


def test_a_rejected_device_that_comes_back_is_not_waited_for_in_the_same_attempt():
    rounds = machine()
    join(rounds, "a", "b")
    rounds.handle(Rejected(0, "a"), 1.0)
    rounds.handle(Joined("a"), 2.0)
    assert not rounds.awaits("a") and rounds.handle(Reported(0, "a"), 2.0) == []
    assert rounds.contributors == () and rounds.roster == ("a", "b")


def test_with_too_many_strikes_a_device_is_barred_until_its_token_is_renewed():
    rounds = machine(total=9, max_strikes=2)
    join(rounds, "a", "b")
    for number in (0, 1):
        rounds.handle(Rejected(number, "a"), 1.0)
        rounds.handle(Reported(number, "b"), 1.0)
        rounds.handle(Joined("a"), 1.0)
        rounds.handle(Committed(number), 1.0)
    rounds.handle(Progressed("a"), 2.0)
    assert rounds.barred == {"a"} and rounds.roster == ("b",) and rounds.current.sampled == ("b",)
    rounds.handle(Renewed("a"), 2.0)
    assert rounds.barred == set() and rounds.strikes == {} and rounds.roster == ("a", "b")


def test_a_rejected_update_of_another_round_is_a_strike_all_the_same():
    rounds = machine()
    join(rounds, "a", "b")
    rounds.handle(Rejected(1, "a"), 1.0)
    assert rounds.awaits("a") and rounds.strikes == {"a": 1}


def test_a_device_that_declines_is_not_waited_for_and_nothing_is_held_against_it():
    rounds = machine()
    join(rounds, "a", "b")
    assert rounds.handle(Declined(0, "a"), 1.0) == [] and rounds.missing == ("b",)
    assert rounds.roster == ("a", "b") and rounds.strikes == {} and rounds.missed == {}
    assert rounds.handle(Reported(0, "b"), 2.0) == [CloseRound(0, 0, ("b",), ("a",), ())]
    assert rounds.handle(Committed(0), 2.0) == [OpenRound(1, 0, ("a", "b"))]


def test_when_everybody_diverges_the_federation_pauses_and_names_the_way_back():
    rounds, attempts = machine(), 0
    join(rounds, "a", "b")
    while rounds.paused is None:
        rounds.handle(Declined(0, "a"), 1.0)
        failed, _ = rounds.handle(Declined(0, "b"), 1.0)
        assert failed.why == "0 of the 1 updates needed; diverged: a, b" and failed.missing == ("a", "b")
        attempts += 1
    assert attempts == MAX_ATTEMPTS
    assert "devices diverged (a, b)" in rounds.paused and "tap-coordinator rollback DIR --to ROUND" in rounds.paused
    (opened,) = rounds.handle(Resume(), 9.0)
    assert opened.attempt == MAX_ATTEMPTS


def test_a_poisoned_value_pauses_the_federation_after_five_attempts_however_many_devices_there_are():
    rounds = machine(min_devices=50, clients_per_round=3)
    join(rounds, *(f"d{number:02}" for number in range(50)))
    attempts = 0
    while rounds.paused is None:
        attempts += 1
        for device in rounds.current.sampled:
            rounds.handle(Declined(0, device), 1.0)
    assert attempts == MAX_ATTEMPTS


def test_a_failed_attempt_is_repeated_with_devices_that_have_not_been_missing_yet():
    rounds = machine(min_updates=2, min_devices=4)
    join(rounds, "a", "b", "c", "d")
    first = rounds.current.sampled
    failed, opened = rounds.handle(Tick(), 10.0)
    assert failed.missing == first and set(opened.sampled) == set("abcd") - set(first)
    failed, opened = rounds.handle(Tick(), 20.0)  # nobody is left who has not been missing
    assert len(opened.sampled) == 2


def test_any_number_of_silent_devices_does_not_pause_a_federation_that_others_report_to():
    """However the seed samples them; the quorum is all that are sampled."""
    silent, honest = [f"silent-{number}" for number in range(12)], ["x", "y"]
    rounds = machine(total=4, min_updates=2, min_devices=14)
    join(rounds, *silent, *honest)
    now = 0.0
    while rounds.phase != "finishing":
        assert rounds.paused is None and rounds.phase in ("open", "closing")
        if rounds.phase == "closing":
            rounds.handle(Committed(rounds.round), now)
        elif reporting := [device for device in rounds.missing if device in honest]:
            rounds.handle(Reported(rounds.round, reporting[0]), now)
        else:
            now = rounds.deadline()
            rounds.handle(Tick(), now)
    assert now <= 10.0 * MAX_MISSED * len(silent)


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


def test_excuses_counts_and_absences_outlive_a_restart():
    history = History(
        members=frozenset("abcde"),
        attempt=2,
        sampled=("a", "b", "c"),
        reported=frozenset("c"),
        away=frozenset("b"),
        excused={"b": "rejected"},
        missed={"a": 1},
        strikes={"b": 2, "d": 3},
        absent=frozenset("e"),
    )
    config = RoundsConfig(total=2, clients_per_round=3, min_updates=2, deadline=10)
    rounds, actions = Rounds.restore(config, SEED, history, 100.0)
    assert actions == [] and rounds.missing == ("a",) and rounds.roster == ("a", "c", "e")
    failed, *_ = rounds.handle(Tick(), 110.0)
    assert failed.why == "1 of the 2 updates needed; no update from a within 10 s; rejected: b"
    assert (failed.away, failed.late, rounds.missed, rounds.absent) == (("a",), ("a",), {"a": 2}, set("abe"))


class Recorded:
    """What the federation's driver keeps of each event and action, as the store does; see `coordinator/federation.py`.

    Everything is recorded before, or with, what the machine does next, so that a restart can come at any point.
    """

    def __init__(self):
        self.round, self.attempt, self.sampled, self.excused = 0, 0, None, {}
        self.reported, self.members, self.away, self.done, self.absent = set(), set(), set(), set(), set()
        self.missed, self.strikes, self.paused = {}, {}, None

    def before(self, event, rounds):
        match event:
            case Joined(device):
                self.members.add(device)
                self.away.discard(device)
            case Reported(number, device) if number == rounds.round and rounds.awaits(device):
                self.reported.add(device)
                self.forgive(device)
                self.away.discard(device)
            case Rejected(number, device) if device in rounds.members:
                self.strikes[device] = self.strikes.get(device, 0) + 1
                self.away.add(device)
                self.excuse(number, device, "rejected", rounds)
            case Declined(number, device):
                self.excuse(number, device, "declined", rounds)
            case Progressed(device) if device in rounds.connected:
                self.away.discard(device)
            case Renewed(device):
                self.forgive(device)
            case Completed(device) if rounds.phase == "finishing" and device in rounds.members:
                self.done.add(device)
            case Removed(device):
                for group in (self.members, self.away, self.done, self.reported):
                    group.discard(device)
                self.forgive(device)
            case Pause(why):
                self.paused = why
            case Resume():
                self.paused = None
            case Lost(number, devices) if rounds.current is not None and number == rounds.round:
                self.reported -= set(devices)
            case Spent(number) if rounds.phase in ("waiting", "open") and number == rounds.round:
                self.go_on()
            case Committed(number) if rounds.phase == "closing" and number == rounds.round:
                self.count(*self.closing)
                self.go_on()

    def go_on(self):
        self.round, self.attempt, self.sampled = self.round + 1, 0, None
        self.reported, self.absent, self.excused = set(), set(), {}

    def forgive(self, device):
        self.missed.pop(device, None)
        self.strikes.pop(device, None)

    def excuse(self, number, device, why, rounds):
        if number == rounds.round and rounds.awaits(device):
            self.excused[device] = why

    def after(self, action):
        match action:
            case OpenRound(_, attempt, sampled):
                self.attempt, self.sampled, self.excused = attempt, sampled, {}
            case FailRound(_, attempt, missing, away, _, late):
                self.attempt, self.sampled, self.excused = attempt + 1, None, {}
                self.absent |= set(missing)
                self.count(away, late)
            case CloseRound(_, _, _, _, away, late):
                self.closing = away, late  # recorded with the commit
            case Hold(why):
                self.paused = why

    def count(self, away, late):
        self.away |= set(away)
        for device in late:
            self.missed[device] = self.missed.get(device, 0) + 1

    def history(self):
        groups = ("reported", "members", "away", "done", "absent")
        sets = {name: frozenset(getattr(self, name)) for name in groups}
        dicts = {name: dict(getattr(self, name)) for name in ("excused", "missed", "strikes")}
        return History(self.round, self.attempt, self.sampled, paused=self.paused, **sets, **dicts)


def known(rounds):
    """What a restart must not change. Connections end with it, and failures are counted anew; see `Rounds.restore`."""
    current = rounds.current and (rounds.current.attempt, rounds.current.sampled, rounds.current.reported)
    facts = (rounds.round, rounds.attempt, rounds.phase, rounds.paused, current, rounds.missing, rounds.roster)
    return (*facts, rounds.members, rounds.away, rounds.barred, rounds.missed, rounds.strikes, rounds.absent)


@pytest.fixture(params=[Joined("a"), Progressed("a")], ids=["reconnects", "moves"])
def event_of_return(request):
    return request.param


DEVICES = st.sampled_from(["a", "b", "c", "d"])
EVENTS = st.one_of(
    st.builds(Rejected, st.integers(0, 3), DEVICES),
    st.builds(Declined, st.integers(0, 3), DEVICES),
    st.builds(Progressed, DEVICES),
    st.builds(Renewed, DEVICES),
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
                    assert not set(sampled) & (rounds.away | rounds.barred)
                case CloseRound(number, attempt, contributors, missing, away, late):
                    ended.append((number, attempt))
                    assert len(contributors) >= quorum and not set(contributors) & set(missing)
                    assert set(away) <= set(late) <= set(missing)
                case FailRound(number, attempt, missing, away, why, late):
                    ended.append((number, attempt))
                    assert why and set(away) <= set(late) <= set(missing)
        assert opened == sorted(set(opened)) and ended == opened[: len(ended)] and len(opened) - len(ended) <= 1
        assert committed == list(range(rounds.round))
        assert (rounds.phase == "open") == (len(opened) > len(ended))
        assert rounds.deadline() is None or rounds.deadline() > now


DAMAGE = st.builds(Lost, st.integers(0, 3), st.tuples(DEVICES)) | st.builds(Spent, st.integers(0, 3))


@given(
    script=st.lists(st.tuples(EVENTS | DAMAGE, st.floats(0, 20)), max_size=60),
    quorum=st.integers(1, 2),
    strikes=st.integers(1, 3),
)
def test_a_restart_at_any_point_rebuilds_the_machine(script, quorum, strikes):
    rounds = machine(total=3, min_updates=quorum, min_devices=1, max_strikes=strikes)
    recorded, now = Recorded(), 0.0
    for event, wait in script:
        now += wait
        recorded.before(event, rounds)
        for action in rounds.handle(event, now):
            recorded.after(action)
        if rounds.phase == "closing" or (rounds.current and rounds.current.late):
            continue  # who was late is recorded with the commit: a restart before that waits and closes again
        restored, actions = Rounds.restore(rounds.config, SEED, recorded.history(), now)
        assert known(restored) == known(rounds)
        assert [type(action) for action in actions] in ([], [Finish])


@given(
    honest=st.integers(2, 5),
    others=st.lists(st.sampled_from(["silent", "gone", "rejected", "declines", "flapping"]), max_size=4),
    order=st.randoms(use_true_random=False),
    quorum=st.integers(1, 2),
)
def test_devices_that_do_not_report_neither_pause_nor_starve_the_others(honest, others, order, quorum):
    """As long as a quorum of honest devices is there. A device that flaps reconnects whenever a deadline has passed."""
    good = [f"good-{number}" for number in range(honest)]
    bad = {f"{kind}-{number}": kind for number, kind in enumerate(others)}
    rounds = machine(total=5, min_updates=quorum, min_devices=1, clients_per_round=2)
    join(rounds, *good, *bad)
    now, deadlines = 0.0, 0
    for device, kind in bad.items():
        if kind == "gone":
            rounds.handle(Left(device), now)
    while rounds.phase != "finishing":
        assert rounds.paused is None and rounds.phase in ("open", "closing"), rounds.paused
        if rounds.phase == "closing":
            rounds.handle(Committed(rounds.round), now)
            continue
        acting = [d for d in rounds.missing if d in good or bad[d] in ("rejected", "declines")]
        if acting:
            device = order.choice(acting)
            event = {"rejected": Rejected, "declines": Declined}.get(bad.get(device), Reported)
            rounds.handle(event(rounds.round, device), now)
            if event is Rejected:
                rounds.handle(Joined(device), now)
            continue
        now, deadlines = rounds.deadline(), deadlines + 1
        rounds.handle(Tick(), now)
        for device, kind in bad.items():
            if kind == "flapping":
                rounds.handle(Joined(device), now)
    flapping = others.count("flapping")
    assert deadlines <= MAX_MISSED * (others.count("silent") + others.count("gone")) + 5 * flapping
