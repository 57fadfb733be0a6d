"""The coordinator's step: a component's next value from those of the devices that reported it.

The source is docs/method.md section 4. The ways to make it:

    mean           W_r <- sum_i n_{i,r} w_{i,r} / sum_i n_{i,r}
    trimmed_mean   each value: the k largest and the k smallest are left out, the rest averaged, every device alike
    median         each value: the middle one, of an even number the mean of the two in the middle, every device alike

The last two (Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates", 2018) bound what a
device can do to the result by what honest devices say; example counts, which a device claims itself, do not enter.

The result is a function of the set of updates and not of their order of arrival: devices are summed in sorted order, in
float64, and each value is rounded once to the wire dtype. The simulator and the coordinator both call this function.
It knows arrays; it does not know files, rounds or sockets, and needs no torch.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from tap_core.names import DeviceName
from tap_core.settings.federation import Aggregation

Weighted = tuple[int, Mapping[str, np.ndarray]]
"""n_{i,r} and the tensors of one device."""

_BLOCK = 1 << 15
"""Values that are summed at a time; of sorted ones, those of all devices together."""


def aggregate(
    updates: Mapping[DeviceName, Weighted], dtype: "np.dtype[Any]", how: Aggregation = "mean", trim: float = 0.2
) -> dict[str, np.ndarray]:
    """The next value of one component (see the module's text).

    ``updates`` maps each device to (n_{i,r}, tensors by name); every device gives the same names and shapes. ``trim``
    is the share of the updates that `trimmed_mean` leaves out at either end (see `trimmed`). Returns contiguous arrays
    of ``dtype`` (float32, float16 or bfloat16), of the same names and shapes, in sorted order.

    Raises ValueError if there is no update, if names or shapes differ between devices, or if an n is not positive.
    """
    if not updates:
        raise ValueError("no update to aggregate; keep the component's value instead")
    devices = sorted(updates)
    shapes = {name: tensor.shape for name, tensor in updates[devices[0]][1].items()}
    for device in devices:
        _check(device, updates[device], shapes, devices[0])
    tensors = {name: [updates[device][1][name] for device in devices] for name in sorted(shapes)}
    if how != "mean":
        middle = _median if how == "median" else _trimmed_mean(trimmed(len(devices), trim))
        return {name: _of_sorted(values, middle, np.dtype(dtype)) for name, values in tensors.items()}
    weights = [float(updates[device][0]) for device in devices]
    examples = float(sum(updates[device][0] for device in devices))
    return {name: _mean(values, weights, examples, np.dtype(dtype)) for name, values in tensors.items()}


def trimmed(devices: int, trim: float) -> int:
    """How many values `trimmed_mean` leaves out at either end: floor(trim * devices), but one of three or more.

    ``trim`` is taken as the decimal number that it was written as: 0.29 of 100 are 29, whatever is next to 0.29 in
    binary.
    """
    return 0 if devices < 3 else max(1, int(Fraction(str(trim)) * devices))


def _check(device: DeviceName, update: Weighted, shapes: Mapping[str, tuple[int, ...]], first: DeviceName) -> None:
    count, tensors = update
    if count <= 0:
        raise ValueError(f"device {device!r} reports {count} examples; an update needs one or more")
    if set(tensors) != set(shapes):
        odd = min(set(tensors) ^ set(shapes))
        raise ValueError(f"devices {first!r} and {device!r} differ: tensor {odd!r} is in one update only")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"tensor {name!r} is {shape} in {first!r} and {tensors[name].shape} in {device!r}")


def _mean(tensors: list[np.ndarray], weights: list[float], examples: float, dtype: "np.dtype[Any]") -> np.ndarray:
    """Weighted mean of arrays of one shape: float64 accumulation, one rounding.

    In blocks that stay in the processor's cache, which is four times as fast and needs no float64 copy of the whole.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    mean = np.empty(tensors[0].shape, dtype)
    out = mean.reshape(-1)
    total, term = np.empty((2, min(out.size, _BLOCK)), np.float64)
    for start in range(0, out.size, _BLOCK):
        end = min(start + _BLOCK, out.size)
        total, term = total[: end - start], term[: end - start]
        np.multiply(flat[0][start:end].astype(np.float64), weights[0], out=total)
        for tensor, weight in zip(flat[1:], weights[1:], strict=True):
            np.copyto(term, tensor[start:end])
            term *= weight
            total += term
        total /= examples
        out[start:end] = round_once(total, dtype)
    return mean


def _of_sorted(
    tensors: list[np.ndarray], middle: Callable[[np.ndarray], np.ndarray], dtype: "np.dtype[Any]"
) -> np.ndarray:
    """``middle`` of the devices' values of each place, sorted: float64 (devices, values) -> (values,). In blocks."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = np.empty(tensors[0].shape, dtype)
    out = result.reshape(-1)
    block = max(1, _BLOCK // len(flat))
    for start in range(0, out.size, block):
        end = min(start + block, out.size)
        values = np.empty((end - start, len(flat)), np.float64)  # a place in a row: rows are sorted where they lie
        for place, tensor in enumerate(flat):
            values[:, place] = tensor[start:end]
        values.sort(axis=1)
        out[start:end] = round_once(middle(values.T), dtype)
    return result


def _median(values: np.ndarray) -> np.ndarray:
    upper = len(values) // 2
    return np.asarray(values[upper] if len(values) % 2 else (values[upper - 1] + values[upper]) / 2)


def _trimmed_mean(count: int) -> Callable[[np.ndarray], np.ndarray]:
    def middle(values: np.ndarray) -> np.ndarray:
        kept = values[count : len(values) - count]
        total = kept[0].copy()
        for row in kept[1:]:
            total += row
        return np.asarray(total / len(kept))

    return middle


def round_once(values: np.ndarray, dtype: "np.dtype[Any]") -> np.ndarray:
    """float64 to ``dtype``, to nearest and ties to even.

    numpy's cast to bfloat16 goes through float32 and so rounds twice. Rounding to odd on the way keeps in the last bit
    of the float32 whether anything was cut off, which makes the second rounding the right one (Boldo and Melquiond,
    "Emulation of FMA and correctly rounded sums", 2008).
    """
    if dtype.name != "bfloat16":
        return values.astype(dtype)
    near = np.array(values, np.float32, order="C")
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= (np.abs(back) > np.abs(values)).astype(np.uint32)  # now truncated toward zero
    bits |= (back != values).astype(np.uint32)
    return near.astype(dtype)
