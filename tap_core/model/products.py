"""Products with frozen matrices, each with low-rank updates, as one node of autograd.

    y_j = W x_g + b + s B_j A_j (x_g * m_g)        for each output group j and the input group g that it reads

It knows matrices and gradients (`LowRank`: torchtune's and peft's equation). It does not know which adapter belongs
where. What plain autograd would do beyond the products themselves is left out here: an input is kept once however many
adapters read it, groups are never stacked, the input's gradient is summed inside the products, and W gets none.

Shapes: G input groups, J output groups (J a multiple of G; J / G consecutive ones read the same input group), N rows
(examples and tokens), r rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class LowRank(NamedTuple):
    """One adapter: A (r, in), B (out, r) and the factor s = alpha / r."""

    A: Tensor
    B: Tensor
    scale: float


@dataclass(frozen=True)
class Frozen:
    """One frozen linear layer: weight (out, in), bias (out,) or None, and an update for each output group, or none."""

    weight: Tensor
    bias: Tensor | None
    updates: Sequence[LowRank] = ()


@dataclass(frozen=True)
class _Plan:
    """What `_Products` needs to know besides tensors that get gradients. ``read``: by input group, the updates that
    read it, as (layer, output group, index of A among the factors)."""

    layers: Sequence[Frozen]
    read: Sequence[Sequence[tuple[int, int, int]]]
    mean: bool


def products(
    x: Tensor, layers: Sequence[Frozen], mask: Tensor | None = None, factor: float = 1.0, *, mean: bool = False
) -> tuple[Tensor, ...]:
    """The product of ``x`` (G, B, S, in) with each layer: (J, B, S, out), or (G, B, S, out) where there are no updates.

    ``mask``: uint8, as ``x``, what dropout keeps of the updates' input, with the ``factor`` that makes up for it.
    ``mean``: the mean over the groups, (1, B, S, out), of one layer with G = J; W's product is then computed once, of
    the mean of the inputs, which is equal but for rounding.
    """
    factors: list[Tensor] = []
    read: list[list[tuple[int, int, int]]] = [[] for _ in x]
    planned = []
    for index, layer in enumerate(layers):
        repeat = max(1, len(layer.updates) // len(x))
        for group, update in enumerate(layer.updates):
            read[group // repeat].append((index, group, len(factors)))
            factors += [update.A, update.B]
        scaled = [u._replace(scale=u.scale * factor / (len(x) if mean else 1)) for u in layer.updates]
        planned.append(Frozen(layer.weight, layer.bias, scaled))
    shape = x.shape
    rows = None if mask is None else mask.reshape(shape[0], -1, shape[-1])
    flat = x.reshape(shape[0], -1, shape[-1])
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        flat, factors = flat.to(dtype), [f.to(dtype) for f in factors]
        planned = [Frozen(p.weight.to(dtype), None if p.bias is None else p.bias.to(dtype), p.updates) for p in planned]
        with torch.autocast(x.device.type, enabled=False):
            outputs = _apply(flat, rows, _Plan(planned, read, mean), *factors)
    else:
        outputs = _apply(flat, rows, _Plan(planned, read, mean), *factors)
    return tuple(y.reshape(y.shape[0], *shape[1:-1], -1) for y in outputs)


def add_update_(y: Tensor, inner: Tensor, B: Tensor, scale: float) -> None:
    """y (N, out) += scale * inner B^T, with inner (N, r)."""
    y.addmm_(inner, B.t(), alpha=scale)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, plan: _Plan, *factors: Tensor) -> tuple[Tensor, ...]:
        """``x``, ``mask``: (G, N, in); ``factors``: A and B of each update in turn."""
        groups = len(x)
        seen = x if mask is None else x * mask
        outputs = []
        for layer in plan.layers:
            base = F.linear(x.mean(0, keepdim=True) if plan.mean else x, layer.weight, layer.bias)
            repeat = 1 if plan.mean else max(1, len(layer.updates) // groups)
            outputs.append(base if repeat == 1 else base.repeat_interleave(repeat, dim=0))
        inners = []
        for group, readers in enumerate(plan.read):
            if not readers:
                continue
            inner = seen[group] @ _joined(factors, readers).t()  # (N, sum of r)
            inners.append(inner)
            start = 0
            for index, output, factor in readers:
                rank = factors[factor].shape[0]
                part = inner[:, start : start + rank]
                scale = plan.layers[index].updates[output].scale
                add_update_(outputs[index][0 if plan.mean else output], part, factors[factor + 1], scale)
                start += rank
        ctx.plan, ctx.shape = plan, x.shape
        keeps = any(ctx.needs_input_grad[3:])
        ctx.save_for_backward(seen if keeps else None, mask, *factors, *(inners if keeps else ()))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, (groups, rows, width) = ctx.plan, ctx.shape
        seen, mask, *saved = ctx.saved_tensors
        count = 2 * sum(len(layer.updates) for layer in plan.layers)
        factors, inners = saved[:count], iter(saved[count:])
        dfactors: list[Tensor | None] = [None] * count
        dx = gradients[0].new_empty(groups, rows, width) if ctx.needs_input_grad[0] else None
        for group, readers in enumerate(plan.read):
            if not readers:
                continue
            inner = next(inners, None)
            dinners, start = [], 0
            for index, output, factor in readers:
                dy = gradients[index][0 if plan.mean else output]
                A, B = factors[factor], factors[factor + 1]
                scale = plan.layers[index].updates[output].scale
                dinners.append(torch.mm(dy, B * scale))
                if inner is not None and ctx.needs_input_grad[3 + factor + 1]:
                    dfactors[factor + 1] = torch.mm(dy.t(), inner[:, start : start + A.shape[0]]).mul_(scale)
                start += A.shape[0]
            dinner = dinners[0] if len(dinners) == 1 else torch.cat(dinners, dim=1)  # (N, sum of r)
            if seen is not None:
                dA = torch.mm(dinner.t(), seen[group])
                start = 0
                for _, _, factor in readers:
                    rank = factors[factor].shape[0]
                    dfactors[factor] = dA[start : start + rank]
                    start += rank
            if dx is not None:
                torch.mm(dinner, _joined(factors, readers), out=dx[group])
                if mask is not None:
                    dx[group].mul_(mask[group])
        if dx is not None:
            _add_frozen(dx, plan, gradients)
        return (dx, None, None, *dfactors)


_apply: Callable[..., tuple[Tensor, ...]] = _Products.apply
"""As `_Products.forward` without its context; torch's own annotations leave it out."""


def _add_frozen(dx: Tensor, plan: _Plan, gradients: Sequence[Tensor]) -> None:
    """dx (G, N, in) += the gradients of the products with W; groups that nothing reads are overwritten first."""
    groups, rows, width = dx.shape
    for group, readers in enumerate(plan.read):
        if not readers:
            dx[group].zero_()
    if plan.mean:
        dx.add_(torch.mm(gradients[0][0], plan.layers[0].weight).div_(groups))
        return
    for layer, dy in zip(plan.layers, gradients, strict=True):
        if dy.shape[0] > groups:
            dy = dy.unflatten(0, (groups, -1)).sum(1)
        dx.view(groups * rows, width).addmm_(dy.reshape(groups * rows, -1), layer.weight)


def _joined(factors: Sequence[Tensor], readers: Sequence[tuple[int, int, int]]) -> Tensor:
    """The A of several updates above one another, (sum of r, in)."""
    parts = [factors[factor] for _, _, factor in readers]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
