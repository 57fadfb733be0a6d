"""The tensors of one component to safetensors bytes and back.

`ComponentTensors` is the only type that `encode_tensors` takes. Personal tensors live in a type of their own, so that
sending them is a TypeError and not a question of policy. `decode_tensors` checks the peer's header against the shapes
of the registry, by a parser of its own, before any tensor exists; the arrays it returns are read-only views of the
received bytes. No pickle; no knowledge of where shapes come from or what the tensors are for.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from protocol.codes import CloseCode
from protocol.errors import LocalProtocolError, NotFinite, RemoteProtocolError
from protocol.names import ComponentName, Digest

DTYPES: dict[str, "np.dtype[Any]"] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The wire's dtypes by their name in the federation's settings."""

_FORMAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_BLOCK = 1 << 20
"""Elements per step of the test for finite values, which bounds its temporary memory."""


@final
@dataclass(frozen=True)
class ComponentTensors:
    """The tensors of one component as they may travel: component name, and arrays by tensor name, all of one dtype."""

    name: ComponentName
    tensors: Mapping[str, NDArray[Any]]


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The name under which bytes travel.

    Args:
        data: The bytes.

    Returns:
        Their sha256 in hexadecimal.
    """
    return Digest(hashlib.sha256(data).hexdigest())


def encode_tensors(component: ComponentTensors) -> bytes:
    """The safetensors bytes of a component: no metadata, and the same bytes for the same values.

    Args:
        component: Its tensors, all of one dtype of DTYPES. It may hold none.

    Returns:
        The bytes that `decode_tensors` reads.

    Raises:
        TypeError: It is anything but exactly a ComponentTensors of numpy arrays.
        LocalProtocolError: It holds several dtypes, a dtype that does not travel, or a value that is not finite.
    """
    if type(component) is not ComponentTensors:
        raise TypeError(f"only ComponentTensors may be encoded for the wire, not {type(component).__name__}")
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in component.tensors.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{component.name}: tensor {name!r} is a {type(array).__name__}, not a numpy array")
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES.values()):
        found = ", ".join(sorted(map(str, dtypes)))
        raise LocalProtocolError(f"{component.name}: needs tensors of one dtype of {', '.join(DTYPES)}; has {found}")
    for name, array in arrays.items():
        if not _is_finite(array):
            raise LocalProtocolError(f"{component.name}: tensor {name!r} has a value that is not finite")
    return save(arrays)


def encoded_size_limit(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    """How long a component may be on the wire.

    Args:
        shapes: Shapes by tensor name.
        dtype: A key of DTYPES.

    Returns:
        The most bytes that `encode_tensors` makes of such tensors.
    """
    return _LENGTH_BYTES + _header_limit(shapes, dtype) + _data_size(shapes, dtype)


def decode_tensors(
    name: ComponentName, data: bytes | bytearray | memoryview, *, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> ComponentTensors:
    """The tensors of a component from the bytes of a peer.

    Strict: exactly the tensors of ``shapes``, with these shapes and this dtype, laid out without gap or overlap, every
    value finite; all of it is checked before anything of a declared size is allocated.

    Args:
        name: The component's name.
        data: What the peer sent.
        shapes: The shape that each tensor must have, by its name.
        dtype: The dtype that they must have, a key of DTYPES.

    Returns:
        Read-only arrays that share the memory of ``data``.

    Raises:
        NotFinite: Only a value is wrong: it is infinite or no number.
        RemoteProtocolError: Anything else is wrong.
    """
    data = memoryview(data).toreadonly().cast("B")
    header_size = _checked_header_size(name, data, shapes, dtype)
    entries = _parse_header(name, bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + header_size]))
    if entries.keys() != shapes.keys():
        strange = sorted(map(repr, entries.keys() ^ shapes.keys()))[:3]
        raise _invalid(name, f"tensors missing or not known: {', '.join(strange)}")
    starts = {tensor: _checked_start(name, tensor, entries[tensor], shapes[tensor], dtype) for tensor in shapes}
    item = DTYPES[dtype]
    tensors: dict[str, NDArray[Any]] = {}
    end_of_last = 0
    for tensor in sorted(shapes, key=lambda tensor: (starts[tensor], math.prod(shapes[tensor]))):
        count = math.prod(shapes[tensor])
        if starts[tensor] != end_of_last:
            raise _invalid(name, f"tensor {tensor!r} does not start where the one before it ends")
        end_of_last += count * item.itemsize
        array = np.frombuffer(data, item, count, _LENGTH_BYTES + header_size + starts[tensor])
        if not _is_finite(array):
            raise NotFinite(f"{name}: tensor {tensor!r} has a value that is not finite", CloseCode.INVALID_DATA)
        tensors[tensor] = array.reshape(shapes[tensor])
    return ComponentTensors(name, {tensor: tensors[tensor] for tensor in sorted(tensors)})


def _checked_header_size(name: str, data: memoryview, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    if len(data) < _LENGTH_BYTES:
        raise _invalid(name, f"{len(data)} bytes are no safetensors file")
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if size > _header_limit(shapes, dtype):
        raise RemoteProtocolError(f"{name}: a header of {size} bytes is too long for its tensors", CloseCode.TOO_BIG)
    if size % _ALIGNMENT:
        raise _invalid(name, f"a header of {size} bytes leaves the tensors unaligned")
    expected = _LENGTH_BYTES + size + _data_size(shapes, dtype)
    if len(data) != expected:
        code = CloseCode.TOO_BIG if len(data) > expected else CloseCode.INVALID_DATA
        raise RemoteProtocolError(f"{name}: {len(data)} bytes where its tensors take {expected}", code)
    return size


def _parse_header(name: str, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, f"the header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _invalid(name, "the header is not a JSON object")
    return entries


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _checked_start(name: str, tensor: str, entry: Any, shape: tuple[int, ...], dtype: str) -> int:
    """Offset of the tensor's first byte, once its header entry is exactly what the registry says."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _invalid(name, f"tensor {tensor!r} has a malformed header")
    if entry["dtype"] != _FORMAT_NAMES[dtype]:
        raise _invalid(name, f"tensor {tensor!r} has another dtype than {dtype}")
    if not _is_list_of_int(entry["shape"]) or tuple(entry["shape"]) != tuple(shape):
        raise _invalid(name, f"tensor {tensor!r} has another shape than {tuple(shape)}")
    offsets = entry["data_offsets"]
    if not _is_list_of_int(offsets) or len(offsets) != 2:
        raise _invalid(name, f"tensor {tensor!r} has malformed offsets")
    start, end = offsets
    if start < 0 or end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _invalid(name, f"tensor {tensor!r} has offsets that do not fit its shape")
    return int(start)


def _is_list_of_int(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _is_finite(array: NDArray[Any]) -> bool:
    flat = array.reshape(-1)
    with np.errstate(invalid="ignore"):  # a signalling NaN of bfloat16 would warn
        return all(bool(np.isfinite(flat[i : i + _BLOCK]).all()) for i in range(0, flat.size, _BLOCK))


def _data_size(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * DTYPES[dtype].itemsize


def _header_limit(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    """Length of the longest header: every offset written as long as the last one, and padding to the alignment."""
    last = _data_size(shapes, dtype)
    entries = {
        tensor: {"dtype": _FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": [last, last]}
        for tensor, shape in shapes.items()
    }
    return -(-len(json.dumps(entries, separators=(",", ":"))) // _ALIGNMENT) * _ALIGNMENT


def _invalid(name: str, why: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"{name}: {why}", CloseCode.INVALID_DATA)
