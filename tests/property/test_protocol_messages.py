"""Properties of messages: the round trip, every message in every state, and any bytes at all."""

from typing import get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import decode, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    MAX_BLOB,
    MAX_COUNT,
    MAX_ROUND,
    MESSAGE_CLASSES,
    Accepted,
    Bye,
    Chunk,
    ComponentRef,
    Decline,
    Done,
    Fetch,
    Finish,
    Heartbeat,
    Hello,
    Refuse,
    Rejected,
    Train,
    Update,
    Want,
    Welcome,
)
from protocol.session import BlobReceived, Session
from protocol.states import TABLE, Role, State
from protocol.tensors import digest_of

OLD, NEW = b"global component" * 4, b"trained component" * 4
OWNED = "decoder/x"
HELLO = Hello(device="d", federation="f", tasks={"x": 5}, foundation="0" * 64, schema_version=1)
WELCOME = Welcome(session="s", settings="{}", owned=(OWNED,))


def ref(blob, version):
    return ComponentRef(name=OWNED, version=version, digest=digest_of(blob), size=len(blob))


TRAIN = Train(round=3, deadline=60.0, components=(ref(OLD, 3),))
UPDATE = Update(round=3, examples={OWNED: 5}, components=(ref(NEW, 3),))
FINISH = Finish(components=(ref(OLD, 9),))
SCRIPTS = {
    "opening": [],
    "greeting": [HELLO],
    "idle": [HELLO, WELCOME],
    "training": [HELLO, WELCOME, TRAIN],
    "reporting": [HELLO, WELCOME, TRAIN, UPDATE],
    "finishing": [HELLO, WELCOME, FINISH],
    "done": [HELLO, WELCOME, FINISH, Done()],
    "closed": [HELLO, WELCOME, Bye(code="stop")],
}
"""The messages that lead to each state; with what was announced there, so that transfers are possible."""


def session_in(role, state):
    session = Session(role)
    for message in SCRIPTS[state]:
        if ("send", message.type) in TABLE[role][session.state]:
            session.send(message)
        else:
            session.receive(encode(message))
    assert session.state == state
    if role == "device" and state in ("training", "finishing"):
        session.expect(digest_of(OLD), len(OLD))
    if role == "coordinator" and state == "reporting":
        session.expect(digest_of(NEW), len(NEW))
    return session


# Messages: half of the values are those that the sessions above know, so that the rules beyond the table are met too.

names = st.sampled_from(["a", "d1", "emoji_group", "x-" + "y" * 62])
component_names = st.sampled_from([OWNED, "encoder/image", "mote/expert/image/shared", "n" * 192])
digests = st.sampled_from([digest_of(OLD), digest_of(NEW), "f" * 64]) | st.binary(max_size=4).map(digest_of)
rounds = st.just(3) | st.integers(0, MAX_ROUND)
counts = st.integers(0, MAX_COUNT)
examples = st.integers(1, MAX_COUNT)
offsets = st.sampled_from([0, 1, len(OLD) - 1, len(NEW) - 1]) | st.integers(0, MAX_BLOB - 1)
sizes = st.integers(1, MAX_BLOB)
lines = st.text(max_size=40)


@st.composite
def components(draw, version=rounds):
    chosen = draw(st.lists(component_names, unique=True, max_size=4))
    known = {digest_of(OLD): len(OLD), digest_of(NEW): len(NEW)}
    refs = []
    for name in chosen:
        digest = draw(digests)
        size = known.setdefault(digest, draw(sizes))
        refs.append(ComponentRef(name=name, version=draw(version), digest=digest, size=size))
    return tuple(refs)


@st.composite
def updates(draw):
    number = draw(rounds)
    refs = draw(components(version=st.just(number)))
    return Update(round=number, examples={ref.name: draw(examples) for ref in refs}, components=refs)


@st.composite
def fetches(draw):
    asked = draw(st.lists(digests, unique=True, min_size=1, max_size=4))
    return Fetch(digests=tuple(asked), offsets=tuple(draw(offsets) for _ in asked))


@st.composite
def offers(draw, cls, **fields):
    refs = draw(components())
    home = draw(st.lists(st.sampled_from([ref.name for ref in refs]), unique=True)) if refs else []
    return cls(components=refs, home=tuple(home), **{name: draw(values) for name, values in fields.items()})


MESSAGES = {
    Hello: st.builds(
        Hello,
        device=names,
        federation=names,
        tasks=st.dictionaries(names, examples, min_size=1),
        foundation=digests,
        schema_version=rounds,
    ),
    Welcome: st.builds(
        Welcome,
        session=names,
        settings=st.text(max_size=200),
        owned=st.lists(component_names, unique=True).map(tuple),
    ),
    Refuse: st.builds(Refuse, code=names, why=lines, fix=lines),
    Train: offers(Train, round=rounds, deadline=st.floats(0, 1e9)),
    Fetch: fetches(),
    Chunk: st.builds(
        Chunk,
        digest=digests,
        offset=offsets,
        data=st.sampled_from([OLD, NEW, OLD[:-1]]) | st.binary(min_size=1, max_size=300),
    ),
    Update: updates(),
    Decline: st.builds(Decline, round=rounds, code=names, why=lines),
    Want: st.builds(Want, digest=digests, offset=offsets),
    Accepted: st.builds(Accepted, round=rounds),
    Rejected: st.builds(Rejected, round=rounds, code=names, why=lines),
    Heartbeat: st.builds(Heartbeat, phase=lines, step=counts, steps=counts),
    Finish: offers(Finish),
    Done: st.just(Done()),
    Bye: st.builds(Bye, code=names),
}
each_message = pytest.mark.parametrize("cls", MESSAGE_CLASSES, ids=lambda cls: cls.__name__)


@each_message
@settings(max_examples=50)
@given(data=st.data())
def test_decode_undoes_encode(cls, data):
    message = data.draw(MESSAGES[cls])
    encoded = encode(message)
    assert decode(encoded) == message and type(decode(encoded)) is cls
    assert msgpack.unpackb(encoded, use_list=False) == message.model_dump()
    assert encode(decode(encoded)) == encoded


@each_message
@settings(max_examples=15)
@given(data=st.data())
def test_every_message_in_every_state_gives_a_legal_state_or_a_protocol_error(cls, data):
    message = data.draw(MESSAGES[cls])
    encoded = encode(message)
    for role in get_args(Role):
        for state in get_args(State):
            session = session_in(role, state)
            allowed = TABLE[role][state].get(("send", message.type))
            try:
                assert session.send(message) == encoded
            except LocalProtocolError:
                assert session.state == state, "a message that was not sent changes nothing"
            else:
                assert session.state == allowed
            session = session_in(role, state)
            allowed = TABLE[role][state].get(("receive", message.type))
            try:
                events = session.receive(encoded)
            except RemoteProtocolError:
                assert session.state == "closed"
            else:
                assert session.state == allowed
                if state == "closed":
                    assert events == []
                elif cls is Chunk:
                    assert all(type(event) is BlobReceived for event in events)
                else:
                    assert events == [message]


def edited(draw, data):
    """`data` with a few bytes changed, left out, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.integers(0, 3)))
        data = data[:at] + draw(st.binary(max_size=5)) + data[upto:]
    return data


@st.composite
def damaged_messages(draw):
    return edited(draw, encode(draw(st.one_of(*MESSAGES.values()))))


keys = st.sampled_from(sorted({name for cls in MESSAGE_CLASSES for name in cls.model_fields})) | st.text(max_size=3)
types = st.sampled_from([cls.model_fields["type"].default for cls in MESSAGE_CLASSES])
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | digests,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
plausible = st.builds(
    lambda type_, fields: msgpack.packb({**fields, "type": type_}), types, st.dictionaries(keys, anything, max_size=5)
)
any_bytes = st.binary(max_size=300) | damaged_messages() | plausible


@settings(max_examples=400)
@given(data=any_bytes)
def test_any_bytes_are_a_message_or_the_peers_error(data):
    try:
        message = decode(data)
    except RemoteProtocolError as error:
        why, code = str(error), error.close_code
        assert why.isprintable() and len(why) <= 300 and code == 1007
    else:
        assert type(message) in MESSAGE_CLASSES and decode(encode(message)) == message


@settings(max_examples=250)
@given(data=any_bytes)
def test_any_bytes_in_any_state_give_events_or_the_peers_error(data):
    for role in get_args(Role):
        for state in get_args(State):
            session = session_in(role, state)
            try:
                events = session.receive(data)
            except RemoteProtocolError:
                assert session.state == "closed"
            else:
                assert len(events) <= 1 and session.state in get_args(State)
