"""Frozen transformer blocks at work, each linear layer with the adapters that are asked for.

It knows `Block` and `routed`. It does not know which adapter belongs to which path, nor where tokens come from.
Shapes: G groups of the input, J groups of the output (one adapter name each; J is a multiple of G, and J / G
consecutive ones begin equal), B examples, S tokens, w width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_core.foundations.base import Block
from tap_core.model.adapters import routed


def attend(block: Block, x: Tensor, mask: Tensor | None, adapters: Sequence[str], causal: bool = False) -> Tensor:
    """The attention half of a block: x (G, B, S, w) to (J, B, S, w), or to (G, B, S, w) if no layer has adapters.

    ``mask``: bool (B, S), false where padding, None where there is none: attention without a mask is faster.
    """
    normed = block.norm1(x) if block.pre_norm else x
    projected = routed((block.q, block.k, block.v), normed, adapters)
    groups = max(y.shape[0] for y in projected)
    batch, tokens, width = x.shape[1:]

    def split(y: Tensor) -> Tensor:  # (G or J, B, S, w) to (J * B, heads, S, w / heads)
        return spread(y, groups).reshape(groups * batch, tokens, block.heads, -1).transpose(1, 2)

    query, key, value = map(split, projected)
    seen = None if mask is None else mask.repeat(groups, 1)[:, None, None]
    if causal and seen is not None:
        seen = seen & torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
    mixed = F.scaled_dot_product_attention(query, key, value, seen, is_causal=causal and seen is None)
    (out,) = routed((block.out,), mixed.transpose(1, 2).reshape(groups, batch, tokens, width), adapters)
    out = out if block.scale1 is None else out * block.scale1
    x = spread(x, out.shape[0])
    return x + out if block.pre_norm else block.norm1(x + out)


def transform(block: Block, x: Tensor, adapters: Sequence[str], mean: bool = False) -> Tensor:
    """The feed-forward half of a block: x (G, B, S, w) to (J, B, S, w), or to their mean, (1, B, S, w).

    The last product is linear, so that the mean of its outputs is the product of the mean of its inputs: a quarter of
    the work for four groups. A post-norm block's output is not linear in it.
    """
    if mean and not block.pre_norm:
        return transform(block, x, adapters).mean(0, keepdim=True)
    (inner,) = routed((block.up,), block.norm2(x) if block.pre_norm else x, adapters)
    (out,) = routed((block.down,), block.act(inner), adapters, mean=mean)
    out = out if block.scale2 is None else out * block.scale2
    x = x.mean(0, keepdim=True) if mean else spread(x, out.shape[0])
    return x + out if block.pre_norm else block.norm2(x + out)


def spread(x: Tensor, groups: int) -> Tensor:
    """x (G, ...) to (groups, ...), each group repeated in place."""
    return x if x.shape[0] == groups else x.repeat_interleave(groups // x.shape[0], dim=0)
