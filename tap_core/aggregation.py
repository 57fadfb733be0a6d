"""The coordinator's step: the weighted mean of one component over the devices that reported it (METHOD.md section 4).

W_r <- sum_i n_{i,r} w_{i,r} / sum_i n_{i,r}

The result is a function of the set of updates and not of their order of arrival: devices are summed in sorted order, in
float64, and each value is rounded once to the wire dtype. The simulator and the coordinator both call this function.
It knows arrays; it does not know files, rounds or sockets, and needs no torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Weighted = tuple[int, Mapping[str, np.ndarray]]
"""n_{i,r} and the tensors of one device."""

_BLOCK = 1 << 15
"""Values that are summed at a time."""


def aggregate(updates: Mapping[str, Weighted], dtype: "np.dtype[Any]") -> dict[str, np.ndarray]:
    """The mean of one component, weighted by examples.

    ``updates`` maps each device to (n_{i,r}, tensors by name); every device gives the same names and shapes. Returns
    contiguous arrays of ``dtype`` (float32, float16 or bfloat16), of the same names and shapes, in sorted order.

    Raises ValueError if there is no update, if names or shapes differ between devices, or if an n is not positive.
    """
    if not updates:
        raise ValueError("no update to aggregate; keep the component's value instead")
    devices = sorted(updates)
    shapes = {name: tensor.shape for name, tensor in updates[devices[0]][1].items()}
    for device in devices:
        _check(device, updates[device], shapes, devices[0])
    weights = [float(updates[device][0]) for device in devices]
    examples = float(sum(updates[device][0] for device in devices))
    return {
        name: _mean(
            [updates[device][1][name] for device in devices],
            weights,
            examples,
            np.dtype(dtype),
        )
        for name in sorted(shapes)
    }


def _check(device: str, update: Weighted, shapes: Mapping[str, tuple[int, ...]], first: str) -> None:
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
        out[start:end] = _round_once(total, dtype)
    return mean


def _round_once(values: np.ndarray, dtype: "np.dtype[Any]") -> np.ndarray:
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
