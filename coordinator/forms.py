"""The form in which a component's bytes rest and travel: one safetensors header, then all values one after the other.

Every writer makes the same header for the same shapes, so bytes that begin with it need no parsing: what follows is one
flat array. That makes checking and averaging many small tensors as cheap as one large. Bytes with any other header,
which may still be valid safetensors, take the general way of `protocol.tensors`, with the same result.
It knows bytes, shapes and numbers; it does not know rounds or files.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.names import ComponentName as WireName
from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, encode_tensors, encoded_size_limit
from tap_core.aggregation import Weighted, aggregate
from tap_core.names import ComponentName, DeviceName
from tap_core.server import advance
from tap_core.settings.federation import Aggregation, RoundsConfig

_LENGTH_BYTES = 8
_BLOCK = 1 << 16
_NORM_BLOCK = 1 << 13
"""So few values that no BLAS spreads their product over threads: the sum is the same whatever else the machine does."""

_VALUES = "values"


class Form:
    """The form of one component: ``name``, shapes and dtype from the federation's manifest, and how it is combined."""

    def __init__(
        self,
        name: ComponentName,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        aggregation: Aggregation = "mean",
        trim: float = 0.2,
    ):
        self.name, self.shapes, self.dtype = name, shapes, dtype
        self._wire_name = WireName(name)
        self.aggregation, self.trim = aggregation, trim
        zeros = {key: np.zeros(shape, DTYPES[dtype]) for key, shape in shapes.items()}
        empty = encode_tensors(ComponentTensors(self._wire_name, zeros))
        self._header = empty[: _LENGTH_BYTES + int.from_bytes(empty[:_LENGTH_BYTES], "little")]
        self._size = len(empty)
        self.values = sum(zero.size for zero in zeros.values())
        """How many values the component has."""
        self.limit = encoded_size_limit(shapes, dtype)
        """Most bytes that any encoding of the component has."""

    def check(self, data: bytes) -> None:
        """Raise RemoteProtocolError unless ``data`` is this component: names, shapes, dtype, and finite values."""
        values = self._flat(data)
        if values is None or not _all_finite(values):
            decode_tensors(self._wire_name, data, shapes=self.shapes, dtype=self.dtype)

    def distance(self, one: bytes, other: bytes | None = None) -> float:
        """||one - other||, of checked bytes, ``other`` being 0 if it is not given: in float64."""
        first, second = self._values(one), None if other is None else self._values(other)
        block, total = np.empty(min(first.size, _NORM_BLOCK)), 0.0
        for start in range(0, first.size, _NORM_BLOCK):
            part = first[start : start + _NORM_BLOCK]
            block = block[: part.size]
            np.copyto(block, part)
            if second is not None:
                np.subtract(block, second[start : start + _NORM_BLOCK], out=block)
            total += float(np.dot(block, block))
        return math.sqrt(total)

    def _values(self, data: bytes) -> "np.ndarray[Any, Any]":
        """All values in the order of our header, whatever the order of theirs."""
        values = self._flat(data)
        if values is not None:
            return values
        tensors = decode_tensors(self._wire_name, data, shapes=self.shapes, dtype=self.dtype).tensors
        return self._values(encode_tensors(ComponentTensors(self._wire_name, tensors)))

    def aggregate(self, updates: Mapping[DeviceName, tuple[int, bytes]]) -> bytes:
        """`tap_core.aggregation.aggregate` of {device: (examples, checked bytes)}, as the bytes of the result."""
        flat = {device: (count, self._flat(data)) for device, (count, data) in updates.items()}
        given = {device: (count, {_VALUES: values}) for device, (count, values) in flat.items() if values is not None}
        if len(given) == len(updates):
            combined = self._combined(given)[_VALUES]
            return b"".join((self._header, combined.view(np.uint8).data))
        decoded = {
            device: (count, decode_tensors(self._wire_name, data, shapes=self.shapes, dtype=self.dtype).tensors)
            for device, (count, data) in updates.items()
        }
        return encode_tensors(ComponentTensors(self._wire_name, self._combined(decoded)))

    def advance(
        self, average: bytes, current: bytes, moments: bytes | None, settings: RoundsConfig
    ) -> tuple[bytes, bytes]:
        """`tap_core.server.advance` of all values: the bytes of the component, and those of its moments, m and v."""
        values = self._values(current)
        held = None if moments is None else np.frombuffer(moments, np.float32).reshape(2, -1)
        new, held = advance(self._values(average), values, held, settings)
        return b"".join((self._header, new.view(np.uint8).data)), held.tobytes()

    def _combined(self, updates: Mapping[DeviceName, Weighted]) -> "dict[str, np.ndarray[Any, Any]]":
        return aggregate(updates, DTYPES[self.dtype], self.aggregation, self.trim)

    def _flat(self, data: bytes) -> "np.ndarray[Any, Any] | None":
        """All values in the order of the bytes; None if the header is another one than ours."""
        if len(data) != self._size or not data.startswith(self._header):
            return None
        return np.frombuffer(data, DTYPES[self.dtype], offset=len(self._header))


def _all_finite(values: "np.ndarray[Any, Any]") -> bool:
    return all(bool(np.isfinite(values[i : i + _BLOCK]).all()) for i in range(0, values.size, _BLOCK))
