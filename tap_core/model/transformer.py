"""Frozen transformer blocks at work, each linear layer with the adapters that are asked for.

It knows `Block` and `routed`. It does not know which adapter belongs to which path, nor where tokens come from.
Shapes: G groups (paths that are told apart here), B examples, S tokens, w width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_core.foundations.base import Block
from tap_core.model.adapters import routed


def attend(block: Block, x: Tensor, mask: Tensor, adapters: Sequence[str], causal: bool = False) -> Tensor:
    """The attention half of a block: x (G, B, S, w), bool mask (B, S) that is false where padding; one adapter name for
    each group, used by the layers that carry it."""
    groups, batch, tokens, width = x.shape
    normed = block.norm1(x) if block.pre_norm else x

    def split(y: Tensor) -> Tensor:  # (G, B, S, w) to (G * B, heads, S, w / heads)
        return y.reshape(groups * batch, tokens, block.heads, -1).transpose(1, 2)

    query, key, value = (split(routed(layer, normed, adapters)) for layer in (block.q, block.k, block.v))
    seen = mask.expand(groups, *mask.shape).reshape(groups * batch, 1, 1, tokens)
    if causal:
        seen = seen & torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
    mixed = F.scaled_dot_product_attention(query, key, value, seen)
    out = routed(block.out, mixed.transpose(1, 2).reshape(groups, batch, tokens, width), adapters)
    out = out if block.scale1 is None else out * block.scale1
    return x + out if block.pre_norm else block.norm1(x + out)


def transform(block: Block, x: Tensor, adapters: Sequence[str]) -> Tensor:
    """The feed-forward half of a block: x (G, B, S, w), one adapter name for each group."""
    inner = routed(block.up, block.norm2(x) if block.pre_norm else x, adapters)
    out = routed(block.down, block.act(inner), adapters)
    out = out if block.scale2 is None else out * block.scale2
    return x + out if block.pre_norm else block.norm2(x + out)
