"""Tensors: exact round trip, one allowed type, and a header checked against the registry before anything is made."""

import json
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.tensors import (
    DTYPES,
    ComponentTensors,
    decode_tensors,
    digest_of,
    encode_tensors,
    encoded_size_limit,
)

SHAPES = {"lora_A": (2, 3), "lora_B": (3, 2), "scale": ()}


def component(dtype="float32", shapes=SHAPES, seed=0):
    generator = np.random.default_rng(seed)
    arrays = {name: generator.normal(size=shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}
    return ComponentTensors("decoder/x", {name: np.asarray(array, DTYPES[dtype]) for name, array in arrays.items()})


def decode(data, shapes=SHAPES, dtype="float32"):
    return decode_tensors("decoder/x", data, shapes=shapes, dtype=dtype)


def forged(entries, data=b"", *, pad=True):
    header = entries if isinstance(entries, bytes) else json.dumps(entries, separators=(",", ":")).encode()
    if pad:
        header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_come_back(dtype):
    sent = component(dtype)
    received = decode(encode_tensors(sent), dtype=dtype)
    assert received.name == sent.name and received.tensors.keys() == sent.tensors.keys()
    for name, array in sent.tensors.items():
        assert received.tensors[name].dtype == DTYPES[dtype] and received.tensors[name].shape == SHAPES[name]
        assert received.tensors[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_are_those_of_safetensors_and_do_not_depend_on_the_order(dtype):
    sent = component(dtype)
    data = encode_tensors(sent)
    assert {name for name, _ in safetensors.deserialize(data)} == SHAPES.keys()
    backwards = ComponentTensors(sent.name, dict(reversed(sent.tensors.items())))
    assert encode_tensors(backwards) == data
    assert b"__metadata__" not in data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [SHAPES, {"é\n": (0, 4), "b" * 100: (1, 1, 1, 7)}, {"x": (100_000,)}], ids=len)
def test_the_size_limit_is_close_and_holds(dtype, shapes):
    size = len(encode_tensors(component(dtype, shapes)))
    assert size <= encoded_size_limit(shapes, dtype) <= size + 16 + 20 * len(shapes)


def test_received_arrays_share_the_bytes_and_cannot_be_written():
    data = encode_tensors(component())
    array = decode(data).tensors["lora_A"]
    assert array.base is not None and not array.flags.writeable and array.flags.aligned
    tracemalloc.start()
    big = {"x": (4_000_000,)}
    encoded = save({"x": np.zeros(4_000_000, np.float32)})
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    decode(encoded, big)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 4 * 2**20, "16 MB of tensors must not be copied"


def test_arrays_that_are_not_contiguous_are_encoded_by_value():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    data = encode_tensors(ComponentTensors("c", {"x": array}))
    assert np.array_equal(decode(data, {"x": (4, 3)}).tensors["x"], array)


@dataclass(frozen=True)
class PersonalTensors:
    name: str
    tensors: dict


@pytest.mark.parametrize(
    "thing", [{"x": np.zeros(2, np.float32)}, PersonalTensors("c", {"x": np.zeros(2, np.float32)}), None, b"bytes"]
)
def test_nothing_but_component_tensors_is_encoded(thing):
    with pytest.raises(TypeError, match="only ComponentTensors"):
        encode_tensors(thing)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_component_without_tensors_travels_too(dtype):
    """As `encoder/text` of a foundation whose word embeddings are all of it."""
    data = encode_tensors(ComponentTensors("decoder/x", {}))
    assert len(data) <= encoded_size_limit({}, dtype)
    assert decode(data, {}, dtype) == ComponentTensors("decoder/x", {})


def test_not_even_a_subclass_is_encoded():
    class Personal(ComponentTensors):
        pass

    with pytest.raises(TypeError, match="only ComponentTensors"):
        encode_tensors(Personal("c", {"x": np.zeros(2, np.float32)}))


def test_values_that_are_not_arrays_are_a_type_error():
    with pytest.raises(TypeError, match="not a numpy array"):
        encode_tensors(ComponentTensors("c", {"x": [1.0]}))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros(2)},
        {"x": np.zeros(2, np.int32)},
        {"x": np.zeros(2, ">f4")},
        {"x": np.array(["text"])},
        {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float16)},
        {"x": np.array([1, np.nan], np.float32)},
        {"x": np.array([1, np.inf], np.float16)},
        {"x": np.array([-np.inf, 1]).astype(DTYPES["bfloat16"])},
    ],
    ids=["float64", "int32", "big-endian", "text", "two dtypes", "nan", "inf", "-inf"],
)
def test_what_must_not_travel_is_our_own_error(arrays):
    with pytest.raises(LocalProtocolError):
        encode_tensors(ComponentTensors("c", arrays))


TWO = {"x": (2,)}
FOUR = np.arange(4, dtype=np.float32).tobytes()
EIGHT = FOUR[:8]
FORGED = {
    "nothing": b"",
    "no header": b"\x00" * 8 + EIGHT,
    "length past the end": (2**63).to_bytes(8, "little") + bytes(60),
    "length of all": b"\xff" * 8 + bytes(60),
    "not JSON": forged(b"not json", EIGHT),
    "not UTF-8": forged(b'{"\xff":1}', EIGHT),
    "deep JSON": forged(b"[" * 48, EIGHT),
    "an array": forged([1], EIGHT),
    "empty": forged({}, EIGHT),
    "null entry": forged({"x": None}, EIGHT),
    "another name": forged({"y": entry()}, EIGHT),
    "another tensor": forged({"x": entry(offsets=(0, 4)), "y": entry()}, EIGHT),
    "metadata": forged({"__metadata__": {"a": "b"}, "x": entry()}, EIGHT),
    "a name twice": forged(b'{"x":0,"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "another dtype": forged({"x": entry(dtype="F16")}, EIGHT),
    "unknown dtype": forged({"x": entry(dtype="F31")}, EIGHT),
    "dtype not text": forged({"x": entry(dtype=[1])}, EIGHT),
    "another shape": forged({"x": entry(shape=(1, 2))}, EIGHT),
    "shape of floats": forged({"x": entry(shape=(2.0,))}, EIGHT),
    "shape of truths": forged({"x": entry(shape=(True,))}, EIGHT),
    "offsets reversed": forged({"x": entry(offsets=(8, 0))}, EIGHT),
    "offsets negative": forged({"x": entry(offsets=(-8, 0))}, EIGHT),
    "offsets shifted": forged({"x": entry(offsets=(4, 12))}, EIGHT),
    "offsets past the end": forged({"x": entry(offsets=(8, 16))}, EIGHT),
    "one offset": forged({"x": entry(offsets=(8,))}, EIGHT),
    "offsets of floats": forged({"x": entry(offsets=(0.0, 8.0))}, EIGHT),
    "a field too many": forged({"x": entry() | {"a": 1}}, EIGHT),
    "bytes missing": forged({"x": entry()}, EIGHT[:-1]),
    "bytes left over": forged({"x": entry()}, EIGHT + b"\x00"),
    "header unaligned": forged(json.dumps({"x": entry()}, separators=(",", ":")).encode() + b" ", EIGHT, pad=False),
    "header with much space": forged(json.dumps({"x": entry()}).encode() + b" " * 4096, EIGHT),
    "nan": forged({"x": entry()}, np.array([0, np.nan], np.float32).tobytes()),
    "inf": forged({"x": entry()}, np.array([-np.inf, 0], np.float32).tobytes()),
}


def test_the_forger_can_make_a_valid_file():
    assert decode(forged({"x": entry()}, EIGHT), TWO).tensors["x"].tolist() == [0, 1]


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
def test_forged_bytes_are_the_peers_error(data):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(data, TWO)
    assert caught.value.close_code in (1007, 1009)
    assert str(caught.value).startswith("decoder/x: ") and str(caught.value).isprintable()


@pytest.mark.parametrize("nesting", [b"[", b'{"x":'], ids=["arrays", "objects"])
def test_deep_nesting_in_a_long_header_is_the_peers_error(nesting):
    registry = {f"tensor-{i}": (0,) for i in range(10_000)}
    with pytest.raises(RemoteProtocolError, match="is not JSON"):
        decode(forged(nesting * 100_000), registry)


@pytest.mark.parametrize(
    "entries",
    [
        {"x": entry(offsets=(0, 8)), "y": entry(offsets=(0, 8))},
        {"x": entry(offsets=(0, 8)), "y": entry(offsets=(4, 12))},
        {"x": entry(offsets=(8, 16)), "y": entry(offsets=(8, 16))},
        {"x": entry(offsets=(0, 8)), "y": entry(offsets=(16, 24))},
    ],
    ids=["same", "overlap", "gap at the start", "gap"],
)
def test_tensors_must_lie_side_by_side(entries):
    with pytest.raises(RemoteProtocolError):
        decode(forged(entries, FOUR), {"x": (2,), "y": (2,)})


def test_tensors_may_lie_in_any_order():
    entries = {"x": entry(offsets=(8, 16)), "y": entry(offsets=(0, 8))}
    assert decode(forged(entries, FOUR), {"x": (2,), "y": (2,)}).tensors["y"].tolist() == [0, 1]


def test_a_tensor_of_another_size_is_refused_before_it_is_looked_at():
    data = encode_tensors(component(shapes={"x": (5,)}))
    with pytest.raises(RemoteProtocolError, match="bytes where its tensors take") as caught:
        decode(data, TWO)
    assert caught.value.close_code == 1009


def test_a_value_that_is_not_finite_is_found_in_every_block():
    array = np.zeros(3 * 2**20 + 5, np.float16)
    array[-1] = np.inf
    with pytest.raises(RemoteProtocolError, match="not finite"):
        decode(save({"x": array}), {"x": array.shape}, "float16")


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_refused_without_a_warning():
    data = encode_tensors(ComponentTensors("c", {"x": np.zeros(4, DTYPES["bfloat16"])}))
    with pytest.raises(RemoteProtocolError, match="not finite"):
        decode(data[:-2] + b"\x81\x7f", {"x": (4,)}, "bfloat16")


def test_the_digest_is_the_sha256():
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(memoryview(b"abc")) == digest_of(bytearray(b"abc"))
