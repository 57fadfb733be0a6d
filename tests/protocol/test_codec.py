"""The codec: one form on the wire, limits before allocation, RemoteProtocolError for everything else."""

import struct
import tracemalloc

import msgpack
import pytest

from protocol.codec import decode, encode, encode_chunk
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import CHUNK, MAX_MESSAGE, Bye, Chunk, ComponentRef, Done

A = "a" * 64


def test_a_message_is_a_msgpack_map_of_its_fields():
    assert msgpack.unpackb(encode(Bye(code="stop"))) == {"type": "bye", "code": "stop"}
    assert encode(Done()) == b"\x81\xa4type\xa4done"


def test_a_chunk_is_encoded_like_any_other_message():
    message = Chunk(digest=A, offset=70000, data=b"some bytes")
    data = encode(message)
    assert msgpack.unpackb(data) == message.model_dump()
    assert decode(data) == message
    assert encode_chunk(A, 70000, memoryview(b"some bytes")) == data


@pytest.mark.parametrize("size", [0, CHUNK + 1])
def test_a_chunk_of_a_wrong_size_is_not_encoded(size):
    with pytest.raises(LocalProtocolError):
        encode_chunk(A, 0, bytes(size))


@pytest.mark.parametrize("thing", [None, {"type": "done"}, ComponentRef(name="a", version=0, digest=A, size=1)])
def test_only_messages_are_encoded(thing):
    with pytest.raises(LocalProtocolError, match="is not a message"):
        encode(thing)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_decoded(kind):
    assert decode(kind(encode(Bye(code="stop")))) == Bye(code="stop")


NESTED = b"\x91" * 1000
INVALID = {
    "nothing": b"",
    "a number": b"\x01",
    "an array": b"\x92\x01\x02",
    "a map without type": b"\x80",
    "an unknown type": msgpack.packb({"type": "shutdown"}),
    "a type that is no text": msgpack.packb({"type": 3}),
    "a field too many": msgpack.packb({"type": "done", "more": 1}),
    "a field too few": msgpack.packb({"type": "bye"}),
    "text where bytes belong": msgpack.packb({"type": "chunk", "digest": A, "offset": 0, "data": "x"}),
    "a number as text": msgpack.packb({"type": "accepted", "round": "1"}),
    "a truth value as number": msgpack.packb({"type": "accepted", "round": True}),
    "a float as number": msgpack.packb({"type": "accepted", "round": 1.0}),
    "a number of 64 bits": msgpack.packb({"type": "accepted", "round": 2**64 - 1}),
    "a negative number": msgpack.packb({"type": "accepted", "round": -1}),
    "not a number": msgpack.packb({"type": "train", "round": 0, "deadline": float("nan"), "components": []}),
    "two messages": encode(Done()) * 2,
    "half a message": encode(Bye(code="stop"))[:-1],
    "a reserved byte": b"\xc1",
    "text that is not UTF-8": b"\x81\xa4type\xa1\xff",
    "a key that is a number": b"\x81\x01\x01",
    "a key that is an array": b"\x81\x91\x01\x01",
    "a key of bytes": b"\x82\xa4type\xa3bye\xc4\x04code\xa1a",
    "a key twice": b"\x83\xa4type\xa3bye\xa4code\xa1a\xa4code\xa1b",
    "nesting": NESTED + b"\x01",
    "nesting of maps": b"\x81\xa1a" * 5000 + b"\x01",
    "endless nesting": b"\x91" * 100_000,
    "an extension": b"\xd4\x01\x00",
    "an empty extension": b"\xc7\x00\x05",
    "an extension as number": b"\x82\xa4type\xa8accepted\xa5round\xc7\x00\x05",
    "a time": b"\xd6\xff\x00\x00\x00\x00",
    "a wrong time": b"\xc7\x0c\xff" + b"\xff" * 12,
    "a huge text": b"\xdb\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
    "a huge array": b"\xdd\xff\xff\xff\xff",
    "a huge map": b"\xdf\xff\xff\xff\xff",
    "a huge extension": b"\xc9\xff\xff\xff\xff\x01",
    "a long text": b"\x82\xa4type\xa3bye\xa4code\xdb" + struct.pack(">I", 600_000) + b"a" * 600_000,
    "too many maps": b"\xdc\x08\x00" + (b"\xdc\x08\x00" + b"\x80" * 2048) * 3,
}


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID.keys())
def test_what_is_no_message_is_the_peers_error(data):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data)
    assert caught.value.close_code == 1007
    text = str(caught.value)
    assert len(text) > 25 and text.isprintable() and len(text) <= 300


def test_a_message_over_the_limit_is_too_big():
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes(MAX_MESSAGE + 1))
    assert caught.value.close_code == 1009


def test_a_text_message_is_unsupported_data():
    with pytest.raises(RemoteProtocolError) as caught:
        decode("hello")
    assert caught.value.close_code == 1003


def test_the_error_does_not_repeat_the_peers_values():
    with pytest.raises(RemoteProtocolError) as caught:
        decode(msgpack.packb({"type": "bye", "code": "Secret Value\x1b[31m"}))
    assert "Secret" not in str(caught.value)


def test_the_error_cuts_the_peers_keys():
    with pytest.raises(RemoteProtocolError) as caught:
        decode(msgpack.packb({"type": "bye", "code": "a", "\x1b[31m" + "k" * 10_000: 1}))
    assert len(str(caught.value)) <= 300 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "unit",
    [
        b"\x80",
        b"\x90",
        b"\x91\x80",
        b"\x81\xa0\x80",
        b"\xa2ab",
        b"\xcd\x12\x34",
        b"\xdc\x08\x00",
        b"\xde\x08\x00",
        b"\xdd\x00\x04\x00\x00",
        b"\xdf\x00\x04\x00\x00",
    ],
    ids=repr,
)
def test_memory_is_bounded_by_the_limits_and_not_by_what_the_peer_declares(unit):
    size = MAX_MESSAGE - 3
    data = b"\xdc\x08\x00" + (b"\xdc\x08\x00" + unit * 2048) * (size // (3 + 2048 * len(unit)) + 1)
    data = data[:MAX_MESSAGE]
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20
