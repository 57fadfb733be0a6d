"""The form in which a component's bytes rest and travel: one safetensors header, then all values one after the other.

Every writer makes the same header for the same shapes, so bytes that begin with it need no parsing: what follows is one
flat array. That makes checking and averaging many small tensors as cheap as one large. Bytes with any other header,
which may still be valid safetensors, take the general way of `protocol.tensors`, with the same result.
It knows bytes, shapes and numbers; it does not know rounds or files.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, encode_tensors, encoded_size_limit
from tap_core.aggregation import aggregate

_LENGTH_BYTES = 8
_BLOCK = 1 << 16
_VALUES = "values"


class Form:
    """The form of one component: ``name``, shapes and dtype from the federation's manifest."""

    def __init__(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str):
        self.name, self.shapes, self.dtype = name, shapes, dtype
        zeros = {key: np.zeros(shape, DTYPES[dtype]) for key, shape in shapes.items()}
        empty = encode_tensors(ComponentTensors(name, zeros))
        self._header = empty[: _LENGTH_BYTES + int.from_bytes(empty[:_LENGTH_BYTES], "little")]
        self._size = len(empty)
        self.limit = encoded_size_limit(shapes, dtype)
        """Most bytes that any encoding of the component has."""

    def check(self, data: bytes) -> None:
        """Raise RemoteProtocolError unless ``data`` is this component: names, shapes, dtype, and finite values."""
        values = self._flat(data)
        if values is None or not _all_finite(values):
            decode_tensors(self.name, data, shapes=self.shapes, dtype=self.dtype)

    def mean(self, updates: Mapping[str, tuple[int, bytes]]) -> bytes:
        """`tap_core.aggregation.aggregate` of {device: (examples, checked bytes)}, as the bytes of the result."""
        flat = {device: (count, self._flat(data)) for device, (count, data) in updates.items()}
        given = {device: (count, {_VALUES: values}) for device, (count, values) in flat.items() if values is not None}
        if len(given) == len(updates):
            mean = aggregate(given, DTYPES[self.dtype])[_VALUES]
            return b"".join((self._header, mean.view(np.uint8).data))
        decoded = {
            device: (count, decode_tensors(self.name, data, shapes=self.shapes, dtype=self.dtype).tensors)
            for device, (count, data) in updates.items()
        }
        return encode_tensors(ComponentTensors(self.name, aggregate(decoded, DTYPES[self.dtype])))

    def _flat(self, data: bytes) -> "np.ndarray[Any, Any] | None":
        """All values in the order of the bytes; None if the header is another one than ours."""
        if len(data) != self._size or not data.startswith(self._header):
            return None
        return np.frombuffer(data, DTYPES[self.dtype], offset=len(self._header))


def _all_finite(values: "np.ndarray[Any, Any]") -> bool:
    return all(bool(np.isfinite(values[i : i + _BLOCK]).all()) for i in range(0, values.size, _BLOCK))
