"""Activation checkpointing: a layer's activations are computed again in the backward pass instead of being kept.

It knows torch's checkpoint and the window of `tap_core.model.dropout`. It does not know layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from tap_core.model.dropout import examples_from, first_example


def run(function: Callable[..., Any], *arguments: Any, recompute: bool) -> Any:
    """``function(*arguments)``; with ``recompute`` only its tensor arguments are kept for the backward pass. Dropout
    draws the same values both times, whichever thread the backward pass runs in."""
    if not (recompute and torch.is_grad_enabled()):
        return function(*arguments)
    first = first_example()

    def again(*inputs: Any) -> Any:
        with examples_from(first):
            return function(*inputs)

    return checkpoint(again, *arguments, use_reentrant=False)
