"""The quick way through a component's bytes gives what the general way gives, and refuses what it refuses."""

import json
import struct

import numpy as np
import pytest

from coordinator.forms import Form
from protocol.errors import RemoteProtocolError
from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, encode_tensors
from tap_core.aggregation import aggregate

SHAPES = {"z": (3, 70), "a": (5,), "m": (), "none": (0, 4), "large": (300, 300)}


def random_tensors(seed, dtype, shapes=SHAPES):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}


def encoded(seed, dtype, shapes=SHAPES):
    return encode_tensors(ComponentTensors("c", random_tensors(seed, dtype, shapes)))


def reordered(data):
    """The same tensors, valid safetensors, laid out in the opposite order."""
    length = int.from_bytes(data[:8], "little")
    entries, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    pieces, start = [], 0
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"], reverse=True):
        piece = body[slice(*entries[name]["data_offsets"])]
        entries[name]["data_offsets"] = [start, start + len(piece)]
        start += len(piece)
        pieces.append(piece)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + b"".join(pieces)


@pytest.mark.parametrize("how", ["mean", "trimmed_mean", "median"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_aggregate_is_that_of_the_general_way_bit_for_bit(dtype, how):
    form = Form("c", SHAPES, dtype, how, 0.3)
    updates = {device: (n, encoded(n, dtype)) for device, n in (("b", 3), ("a", 11), ("c", 1))}
    tensors = {
        device: (n, decode_tensors("c", data, shapes=SHAPES, dtype=dtype).tensors)
        for device, (n, data) in updates.items()
    }
    expected = encode_tensors(ComponentTensors("c", aggregate(tensors, DTYPES[dtype], how, 0.3)))
    assert form.aggregate(updates) == expected
    strange = {**updates, "a": (11, reordered(updates["a"][1]))}
    assert strange["a"][1] != updates["a"][1]
    form.check(strange["a"][1])
    assert form.aggregate(strange) == expected


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["first", "last", "middle"])
def test_values_that_are_not_finite_are_found(dtype, value, place):
    form, data = Form("c", SHAPES, dtype), bytearray(encoded(1, dtype))
    form.check(bytes(data))
    size = DTYPES[dtype].itemsize
    count = sum(int(np.prod(shape)) for shape in SHAPES.values())
    at = len(data) - size * {"first": count, "last": 1, "middle": count // 2}[place]
    data[at : at + size] = np.array(value, DTYPES[dtype]).tobytes()
    with pytest.raises(RemoteProtocolError, match="not finite"):
        form.check(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encoded(1, "float32")[:-1],
        encoded(1, "float32") + b"\0",
        encoded(1, "float16"),
        encoded(1, "float32", {**SHAPES, "a": (1, 5)}),
        encoded(1, "float32", {**SHAPES, "extra": (1,)}),
    ],
    ids=["empty", "short", "long", "dtype", "shape", "names"],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(RemoteProtocolError):
        Form("c", SHAPES, "float32").check(data)
