"""Messages to bytes and back: msgpack maps, one message per binary WebSocket message.

`decode` is the gate of everything that comes from a peer: for any bytes at all it returns a valid message or raises
RemoteProtocolError. Limits hold before memory is allocated: the whole message, every string, array and map, and how
many values there are in all (a byte on the wire can ask for an object a hundred times its size).
"""

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgpack
from pydantic import TypeAdapter, ValidationError

from protocol.codes import CloseCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import CHUNK, MAX_COMPONENTS, MAX_MESSAGE, MAX_SETTINGS, MESSAGE_CLASSES, Chunk, Message

Buffer: TypeAlias = bytes | bytearray | memoryview

_ADAPTER: TypeAdapter[Message] = TypeAdapter(Message)
_MAX_VALUES = 8 * MAX_COMPONENTS
"""Arrays, maps and their entries in one message: an Update has seven for each component, and a few around them."""

_CHUNK_START = b"\x84" + msgpack.packb("type") + msgpack.packb("chunk") + msgpack.packb("digest")
_CHUNK_OFFSET = msgpack.packb("offset")
_CHUNK_DATA = msgpack.packb("data") + b"\xc6"  # bin 32; its length follows


def encode(message: Message) -> bytes:
    """The bytes of a message.

    Args:
        message: One of the messages of this protocol.

    Returns:
        A msgpack map of MAX_MESSAGE bytes at most.

    Raises:
        LocalProtocolError: It is no message of this protocol, or too long.

    >>> from protocol.messages import Done
    >>> decode(encode(Done()))
    Done(type='done')
    """
    if type(message) not in MESSAGE_CLASSES:
        raise LocalProtocolError(f"{type(message).__name__} is not a message")
    if isinstance(message, Chunk):
        return encode_chunk(message.digest, message.offset, message.data)
    data: bytes = msgpack.packb(message.model_dump())
    if len(data) > MAX_MESSAGE:
        raise LocalProtocolError(f"a {message.type} message of {len(data)} bytes exceeds {MAX_MESSAGE}")
    return data


def encode_chunk(digest: str, offset: int, data: Buffer) -> bytes:
    """The bytes of Chunk(digest, offset, data), with a single copy of `data` and no model in between.

    Raises LocalProtocolError if `data` is empty or longer than CHUNK.
    """
    if not 0 < len(data) <= CHUNK:
        raise LocalProtocolError(f"a chunk carries 1 to {CHUNK} bytes, not {len(data)}")
    head = _CHUNK_START + msgpack.packb(digest) + _CHUNK_OFFSET + msgpack.packb(offset)
    return b"".join((head, _CHUNK_DATA, struct.pack(">I", len(data)), data))


def decode(data: Buffer) -> Message:
    """The message in some bytes.

    Args:
        data: What a peer sent as one WebSocket message; anything at all.

    Returns:
        The message, valid in each of its fields.

    Raises:
        RemoteProtocolError: There is none. Nothing else is raised.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise RemoteProtocolError("a text message; every message of this protocol is binary", CloseCode.TEXT)
    if len(data) > MAX_MESSAGE:
        raise RemoteProtocolError(f"a message of {len(data)} bytes; the limit is {MAX_MESSAGE}", CloseCode.TOO_BIG)
    try:
        values = _unpack(data)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        # msgpack documents no complete list, and its C and Python implementations differ
        raise RemoteProtocolError(
            f"not a msgpack message: {str(error) or type(error).__name__}", CloseCode.INVALID_DATA
        ) from None
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise RemoteProtocolError(_explain(error), CloseCode.INVALID_DATA) from None


def _unpack(data: Buffer) -> Any:
    seen = 0

    def count(entries: int) -> None:
        nonlocal seen
        seen += 1 + entries
        if seen > _MAX_VALUES:
            raise ValueError(f"more than {_MAX_VALUES} values")

    def on_map(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
        count(len(pairs))
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a map names a key twice")
        return values

    def on_array(values: tuple[Any, ...]) -> tuple[Any, ...]:
        count(len(values))
        return values

    def on_extension(code: int, content: bytes) -> Any:
        raise ValueError("extension types are not used")

    return msgpack.unpackb(
        data,
        use_list=False,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=on_map,
        list_hook=on_array,
        ext_hook=on_extension,
        max_str_len=MAX_SETTINGS,
        max_bin_len=CHUNK,
        max_array_len=MAX_COMPONENTS,
        max_map_len=MAX_COMPONENTS,
        max_ext_len=0,
    )


def _explain(error: ValidationError) -> str:
    """The first problem, without the peer's values; the location may hold a peer's key, so it is cut."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part)[:40] for part in problem["loc"])
    return f"not a valid message: {where or 'message'}: {problem['msg'][:160]}"
