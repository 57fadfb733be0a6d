"""Messages: bounds hold, values are not converted, and every valid message fits into MAX_MESSAGE."""

import pytest
from pydantic import ValidationError

from protocol import messages
from protocol.codec import decode, encode
from protocol.messages import (
    CHUNK,
    COORDINATOR_MESSAGES,
    DEVICE_MESSAGES,
    MAX_COMPONENTS,
    MAX_MESSAGE,
    MAX_SETTINGS,
    MAX_TASKS,
    MESSAGE_CLASSES,
    Bye,
    Chunk,
    ComponentRef,
    Fetch,
    Finish,
    Heartbeat,
    Hello,
    Refuse,
    Train,
    Update,
    Welcome,
)

A, B = "a" * 64, "b" * 64


def ref(name="decoder/x", version=0, digest=A, size=10):
    return ComponentRef(name=name, version=version, digest=digest, size=size)


def test_every_message_has_a_sender_and_a_name_of_its_own():
    names = [cls.model_fields["type"].default for cls in MESSAGE_CLASSES]
    assert len(set(names)) == len(names)
    assert set(names) == DEVICE_MESSAGES | COORDINATOR_MESSAGES
    assert {"chunk"} == DEVICE_MESSAGES & COORDINATOR_MESSAGES


@pytest.mark.parametrize("cls", [*MESSAGE_CLASSES, ComponentRef], ids=lambda cls: cls.__name__)
def test_every_field_is_described_and_every_message_frozen(cls):
    assert cls.__doc__
    for name, field in cls.model_fields.items():
        assert name == "type" or field.description, f"{cls.__name__}.{name} needs a description"
    assert cls.model_config["frozen"] and cls.model_config["extra"] == "forbid"


def test_a_message_cannot_be_changed():
    with pytest.raises(ValidationError):
        Bye(code="stop").code = "other"


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (Bye, {"code": "Not A Code"}),
        (Bye, {"code": "stop\n"}),
        (Bye, {"code": "stop", "more": 1}),
        (Heartbeat, {"phase": "training", "step": True, "steps": 1}),
        (Heartbeat, {"phase": "training", "step": "1", "steps": 1}),
        (Heartbeat, {"phase": "training", "step": -1, "steps": 1}),
        (Heartbeat, {"phase": "x" * 65, "step": 0, "steps": 1}),
        (Train, {"round": -1, "deadline": 1.0, "components": ()}),
        (Train, {"round": 2**31, "deadline": 1.0, "components": ()}),
        (Train, {"round": 0, "deadline": float("nan"), "components": ()}),
        (Train, {"round": 0, "deadline": float("inf"), "components": ()}),
        (Train, {"round": 0, "deadline": 1.0, "components": (ref(), ref())}),
        (Train, {"round": 0, "deadline": 1.0, "components": (ref("a"), ref("b", size=11))}),
        (Fetch, {"digests": (), "offsets": ()}),
        (Fetch, {"digests": (A,), "offsets": (0, 1)}),
        (Fetch, {"digests": (A, A), "offsets": (0, 0)}),
        (Fetch, {"digests": ("A" * 64,), "offsets": (0,)}),
        (Chunk, {"digest": A, "offset": 0, "data": b""}),
        (Chunk, {"digest": A, "offset": 0, "data": bytes(CHUNK + 1)}),
        (Chunk, {"digest": A, "offset": 0, "data": "text"}),
        (Update, {"round": 1, "examples": {"decoder/x": 5}, "components": (ref(version=0),)}),
        (Update, {"round": 0, "examples": {"decoder/y": 5}, "components": (ref(),)}),
        (Update, {"round": 0, "examples": {"decoder/x": 0}, "components": (ref(),)}),
        (Hello, {"device": "d", "federation": "f", "tasks": {"t": 0}, "foundation": A, "schema_version": 1}),
        (Hello, {"device": "../d", "federation": "f", "tasks": {"t": 1}, "foundation": A, "schema_version": 1}),
        (Welcome, {"session": "s", "settings": "ü" * (MAX_SETTINGS // 2 + 1), "owned": ()}),
        (Welcome, {"session": "s", "settings": "\ud800", "owned": ()}),
        (Welcome, {"session": "s", "settings": "{}", "owned": ("decoder/x", "decoder/x")}),
        (ComponentRef, {"name": "decoder/x", "version": 0, "digest": A, "size": 0}),
    ],
)
def test_values_out_of_bounds_are_refused(cls, fields):
    with pytest.raises(ValidationError):
        cls(**fields)


def test_texts_for_people_become_one_printable_line():
    message = Refuse(code="schema", why="two\nlines \x1b[31mred", fix="turn \u202e round")
    assert message.why == "two lines  [31mred" and message.fix == "turn   round"


@pytest.mark.parametrize("fields", [{"round": 1, "deadline": 1.0}, {}], ids=["train", "finish"])
def test_home_names_offered_components_and_is_left_out_if_empty(fields):
    cls = Train if fields else Finish
    whole = cls(components=(ref(),), home=("decoder/x",), **fields)
    assert decode(encode(whole)) == whole and b"home" in encode(whole)
    assert b"home" not in encode(cls(components=(ref(),), **fields))  # as before there was such a field
    for home in (("decoder/y",), ("decoder/x", "decoder/x")):
        with pytest.raises(ValidationError):
            cls(components=(ref(),), home=home, **fields)


def test_the_largest_messages_fit():
    refs = tuple(
        ref(f"{i:0192d}", version=messages.MAX_ROUND, digest=f"{i:064x}", size=messages.MAX_BLOB)
        for i in range(MAX_COMPONENTS)
    )
    examples = {component.name: messages.MAX_COUNT for component in refs}
    largest = [
        Update(round=messages.MAX_ROUND, examples=examples, components=refs),
        Train(round=messages.MAX_ROUND, deadline=1e9, components=refs, home=tuple(examples)),
        Welcome(session="s" * 64, settings="s" * MAX_SETTINGS, owned=tuple(component.name for component in refs)),
        Fetch(
            digests=tuple(component.digest for component in refs),
            offsets=(messages.MAX_BLOB - 1,) * MAX_COMPONENTS,
        ),
        Chunk(digest=A, offset=messages.MAX_BLOB - 1, data=bytes(CHUNK)),
        Hello(
            device="d" * 64,
            federation="f" * 64,
            tasks={f"{i:064d}": messages.MAX_COUNT for i in range(MAX_TASKS)},
            foundation=A,
            schema_version=1,
        ),
        Refuse(code="c" * 64, why="\U0001f600" * 1024, fix="\U0001f600" * 1024),
    ]
    for message in largest:
        data = encode(message)
        assert len(data) <= MAX_MESSAGE
        assert decode(data) == message
