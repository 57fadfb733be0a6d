"""Which message may be sent or received when: one table, and nothing else decides it.

Theory of operation. A connection has two ends, each with a state of its own. The device introduces itself and is then
idle; from idle the coordinator asks it to train, or, at the end of the federation, to finish. A device that trains
fetches what it lacks, and reports an update; the coordinator fetches the update's blobs and accepts or rejects it, and
both are idle again. A device that cannot take part in the round declines instead, and is idle at once. The coordinator
may say bye at any time; that, a refusal, a violation and the loss of the connection all lead to `closed`. After a
reconnect everything starts again from `opening`.

```
opening -hello-> greeting -welcome-> idle -train-> training -update-> reporting -accepted/rejected-> idle
                                                   training -decline-> idle
                                     idle -finish-> finishing -done-> done -bye-> closed
```

Messages cross on the wire, so the two ends are not always in the same state. The coordinator's table is the mirror of
the device's plus what may come late: what a device may have sent before it heard that its update was rejected or that
the coordinator said bye. The rule behind the table: two peers that both obey it can never accuse each other, however
their messages cross. This module knows names of messages and states only; rules about their contents are in `session`.
"""

from typing import Literal, TypeAlias

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import DEVICE_MESSAGES

Role = Literal["device", "coordinator"]
Direction = Literal["send", "receive"]
State = Literal["opening", "greeting", "idle", "training", "reporting", "finishing", "done", "closed"]
Transitions: TypeAlias = dict[tuple[Direction, str], State]

_DEVICE: dict[State, Transitions] = {
    "opening": {
        ("send", "hello"): "greeting",
        ("receive", "bye"): "closed",
    },
    "greeting": {
        ("receive", "welcome"): "idle",
        ("receive", "refuse"): "closed",
        ("receive", "bye"): "closed",
    },
    "idle": {
        ("receive", "train"): "training",
        ("receive", "finish"): "finishing",
        ("send", "heartbeat"): "idle",
        ("receive", "bye"): "closed",
    },
    "training": {
        ("send", "fetch"): "training",
        ("receive", "chunk"): "training",
        ("send", "heartbeat"): "training",
        ("send", "update"): "reporting",
        ("send", "decline"): "idle",
        ("receive", "bye"): "closed",
    },
    "reporting": {
        ("receive", "want"): "reporting",
        ("send", "chunk"): "reporting",
        ("send", "heartbeat"): "reporting",
        ("receive", "accepted"): "idle",
        ("receive", "rejected"): "idle",
        ("receive", "bye"): "closed",
    },
    "finishing": {
        ("send", "fetch"): "finishing",
        ("receive", "chunk"): "finishing",
        ("send", "heartbeat"): "finishing",
        ("send", "done"): "done",
        ("receive", "bye"): "closed",
    },
    "done": {
        ("send", "heartbeat"): "done",
        ("receive", "bye"): "closed",
    },
    "closed": {},
}

_LATE: dict[State, Transitions] = {
    "idle": {("receive", "chunk"): "idle"},
    "training": {("receive", "chunk"): "training"},
    "finishing": {("receive", "chunk"): "finishing"},
    "closed": {("receive", message): "closed" for message in sorted(DEVICE_MESSAGES)},
}
"""Coordinator only. The session drops these: chunks of a rejected update, and all that crossed a bye or a refusal."""

_OPPOSITE: dict[Direction, Direction] = {"send": "receive", "receive": "send"}

TABLE: dict[Role, dict[State, Transitions]] = {
    "device": _DEVICE,
    "coordinator": {
        state: {
            **{(_OPPOSITE[direction], message): new for (direction, message), new in transitions.items()},
            **_LATE.get(state, {}),
        }
        for state, transitions in _DEVICE.items()
    },
}


def next_state(role: Role, state: State, direction: Direction, message: str) -> State:
    """The state after a message of type `message`.

    Raises LocalProtocolError if it may not be sent now, RemoteProtocolError if it may not be received now.
    """
    found = TABLE[role][state].get((direction, message))
    if found is None:
        why = f"a {role} that is {state} may not {direction} {message}"
        raise LocalProtocolError(why) if direction == "send" else RemoteProtocolError(why)
    return found
