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

    ``p`` is rounded to 2^-16; the factor is that of the rounded one.
    """
    dropped = min(max(round(p * _LEVELS), 0), _LEVELS - 1)
    groups, examples = shape[0], shape[1]
    seeds: list[int] = torch.randint(2**63 - 1, (groups,)).tolist()
    words = -(-shape[2:].numel() // 4)  # 64-bit words of an example
    mask = np.empty((groups, examples, words * 4), np.uint8)
    for group, seed in enumerate(seeds):
        source = np.random.SFC64(seed)
        source.random_raw(_first.get() * words, output=False)
        bits = source.random_raw(examples * words).view(np.uint16).reshape(examples, -1)
        np.greater_equal(bits, dropped, out=mask[group].view(np.bool_))
    whole = torch.from_numpy(mask[..., : shape[2:].numel()]).reshape(shape)
    return whole.to(device), _LEVELS / (_LEVELS - dropped)
