"""Which values LoRA's dropout drops, drawn cheaply and repeatably.

It knows shapes, probabilities and torch's default generator. It does not know adapters.

A float for each value, as torch draws them on a CPU, costs an eighth of a training step. Here each call takes one seed
from torch's generator, so that ``torch.manual_seed``, forked generators and activation checkpointing govern it as ever,
and expands it with SFC64 to 16 bits for each value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16

_first: ContextVar[int] = ContextVar("first", default=0)
_off: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def without_dropout() -> Iterator[None]:
    """Nothing is dropped inside, whether modules are training or not."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def is_off() -> bool:
    return _off.get()


def first_example() -> int:
    """Which example of its batch the first one is: see `examples_from`."""
    return _first.get()


@contextmanager
def examples_from(first: int) -> Iterator[None]:
    """What is computed inside are a batch's examples from ``first`` on: each loses the values that it would lose in the
    whole batch, if torch's generator begins in the same state."""
    token = _first.set(first)
    try:
        yield
    finally:
        _first.reset(token)


def kept(shape: torch.Size, p: float, device: torch.device) -> tuple[Tensor, float]:
    """What is kept, uint8 of ``shape`` (G, B, S, w), 0 with probability ``p``; and the factor that makes up for it.

    ``p`` is rounded to 2^-16; the factor is that of the rounded one. Equal seeds give equal values on one type of
    device, not on a CPU and a GPU.
    """
    dropped = min(max(round(p * _LEVELS), 0), _LEVELS - 1)
    seeds: list[int] = torch.randint(2**63 - 1, (shape[0],)).tolist()
    mask = _on_cpu(shape, seeds, dropped) if device.type == "cpu" else _on_device(shape, seeds, dropped, device)
    return mask, _LEVELS / (_LEVELS - dropped)


def _on_cpu(shape: torch.Size, seeds: list[int], dropped: int) -> Tensor:
    words = -(-shape[2:].numel() // 4)  # 64-bit words of an example
    mask = np.empty((shape[0], shape[1], words * 4), np.uint8)
    for group, seed in enumerate(seeds):
        source = np.random.SFC64(seed)
        source.random_raw(_first.get() * words, output=False)
        bits = source.random_raw(shape[1] * words).view(np.uint16).reshape(shape[1], -1)
        np.greater_equal(bits, dropped, out=mask[group].view(np.bool_))
    return torch.from_numpy(mask[..., : shape[2:].numel()]).reshape(shape)


def _on_device(shape: torch.Size, seeds: list[int], dropped: int, device: torch.device) -> Tensor:
    """Drawn where it is needed. A generator's values depend on how many are asked for, so each example has its own."""
    mask = torch.empty(shape, dtype=torch.uint8, device=device)
    if device.type == "meta":  # shapes alone, for counting
        return mask
    generator = torch.Generator(device)
    for group, seed in enumerate(seeds):
        for example in range(shape[1]):
            generator.manual_seed((seed + _first.get() + example) % 2**63)
            mask[group, example].bernoulli_(1 - dropped / _LEVELS, generator=generator)
    return mask
