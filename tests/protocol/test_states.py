"""The table: complete, closed under its own states, and consistent between the two roles."""

from typing import get_args

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import COORDINATOR_MESSAGES, DEVICE_MESSAGES
from protocol.states import TABLE, Role, State, next_state

ALL = DEVICE_MESSAGES | COORDINATOR_MESSAGES
SENDS = {"device": DEVICE_MESSAGES, "coordinator": COORDINATOR_MESSAGES}
OTHER = {"device": "coordinator", "coordinator": "device"}


@pytest.mark.parametrize("role", get_args(Role))
def test_the_table_knows_every_state_and_only_real_messages(role):
    assert set(TABLE[role]) == set(get_args(State))
    for transitions in TABLE[role].values():
        for (direction, message), new in transitions.items():
            assert message in SENDS[role if direction == "send" else OTHER[role]]
            assert new in get_args(State)


@pytest.mark.parametrize("role", get_args(Role))
def test_every_state_is_reached_and_every_message_used(role):
    reached, pending = set(), ["opening"]
    while pending:
        state = pending.pop()
        reached.add(state)
        pending += [new for new in TABLE[role][state].values() if new not in reached]
    assert reached == set(get_args(State))
    used = {message for transitions in TABLE[role].values() for _, message in transitions}
    assert used == ALL


def test_what_one_side_may_send_the_other_may_receive_in_the_same_state():
    for role in get_args(Role):
        for state, transitions in TABLE[role].items():
            for (direction, message), new in transitions.items():
                if direction == "send":
                    assert TABLE[OTHER[role]][state]["receive", message] == new


def test_the_coordinator_may_say_bye_in_every_state_and_nothing_leaves_closed():
    for state in set(get_args(State)) - {"closed"}:
        assert TABLE["coordinator"][state]["send", "bye"] == "closed"
        assert TABLE["device"][state]["receive", "bye"] == "closed"
    for role in get_args(Role):
        assert set(TABLE[role]["closed"].values()) <= {"closed"}
        assert not any(direction == "send" for direction, _ in TABLE[role]["closed"])


def test_the_error_is_that_of_the_side_at_fault():
    assert next_state("device", "opening", "send", "hello") == "greeting"
    with pytest.raises(LocalProtocolError, match="a device that is idle may not send update"):
        next_state("device", "idle", "send", "update")
    with pytest.raises(RemoteProtocolError, match="a coordinator that is idle may not receive update") as caught:
        next_state("coordinator", "idle", "receive", "update")
    assert caught.value.close_code == 1002
