"""Properties of tensors on the wire: exact round trip for every dtype and shape, and any bytes at all."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, encode_tensors, encoded_size_limit

shapes = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    min_size=1,
    max_size=4,
)


@st.composite
def components(draw, dtype):
    """A component with any finite bit patterns, negative zero and subnormal numbers included."""
    tensors = {}
    for name, shape in draw(shapes).items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), DTYPES[dtype]).reshape(shape)
        with np.errstate(invalid="ignore"):
            tensors[name] = np.where(np.isfinite(array), array, np.zeros((), DTYPES[dtype])).astype(DTYPES[dtype])
    return ComponentTensors("c", tensors)


def shapes_of(component):
    return {name: array.shape for name, array in component.tensors.items()}


each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@each_dtype
@settings(max_examples=80)
@given(data=st.data())
def test_decode_undoes_encode_bit_for_bit(dtype, data):
    sent = data.draw(components(dtype))
    encoded = encode_tensors(sent)
    assert len(encoded) <= encoded_size_limit(shapes_of(sent), dtype)
    received = decode_tensors("c", encoded, shapes=shapes_of(sent), dtype=dtype)
    assert shapes_of(received) == shapes_of(sent)
    for name, array in sent.tensors.items():
        assert received.tensors[name].dtype == array.dtype and received.tensors[name].tobytes() == array.tobytes()
    assert encode_tensors(received) == encoded


@each_dtype
@settings(max_examples=80)
@given(data=st.data())
def test_other_shapes_or_dtypes_than_the_registrys_are_refused(dtype, data):
    sent = data.draw(components(dtype))
    registry = data.draw(shapes)
    other = data.draw(st.sampled_from(sorted(DTYPES)))
    if (registry, other) != (shapes_of(sent), dtype):
        with pytest.raises(RemoteProtocolError):
            decode_tensors("c", encode_tensors(sent), shapes=registry, dtype=other)


SHAPES = {"x": (2, 3), "y": (), "z": (0, 5)}
SIZE = 7 * 4
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 30)
    | st.integers()
    | st.floats()
    | st.sampled_from(["F32", "BF16", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x", "y", "z", "__metadata__"]), inner)
    ),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {"dtype": st.just("F32"), "shape": st.sampled_from([[2, 3], [], [0, 5]]) | values, "data_offsets": values}
)


def with_header(header, data):
    text = (header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()) + b""
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def damaged(draw):
    data = encode_tensors(ComponentTensors("c", {n: np.ones(s, np.float32) for n, s in SHAPES.items()}))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.integers(0, 3)))
        data = data[:at] + draw(st.binary(min_size=upto - at, max_size=upto - at) | st.binary(max_size=4)) + data[upto:]
    return data


any_bytes = (
    st.binary(max_size=200)
    | damaged()
    | st.builds(with_header, values | st.binary(max_size=150), st.just(bytes(SIZE)))
    | st.builds(with_header, st.fixed_dictionaries({"x": entries, "y": entries, "z": entries}), st.just(bytes(SIZE)))
)


@settings(max_examples=400)
@given(data=any_bytes)
def test_any_bytes_are_the_announced_tensors_or_the_peers_error(data):
    try:
        received = decode_tensors("c", data, shapes=SHAPES, dtype="float32")
    except RemoteProtocolError as error:
        why, code = str(error), error.close_code
        assert why.isprintable() and len(why) <= 300 and code in (1007, 1009)
    else:
        assert shapes_of(received) == SHAPES
        assert all(np.isfinite(array).all() for array in received.tensors.values())


@settings(max_examples=100)
@given(data=any_bytes, shape=st.sampled_from([(), (2,), (10**6,), (10**9, 10**9)]))
def test_any_bytes_against_any_registry(data, shape):
    with pytest.raises(RemoteProtocolError):
        decode_tensors("c", data, shapes={"w": shape}, dtype="bfloat16")
