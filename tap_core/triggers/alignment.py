"""Centred kernel alignment of a set's pooled representation with the targets, as indicator (docs/method.md section 9).

Alignment is a fact about a whole set of examples. Each example's score is its jackknife pseudo-value, n CKA - (n - 1)
CKA without it: their mean is the alignment but for its bias, and the standard error of paired differences is the
jackknife's. Kernels are linear, and HSIC is the unbiased estimate (Song et al., "Feature selection via dependence
maximization", 2012), because a biased one grows with the width of the representation when examples are few.

Shapes: n examples, d hidden size, c of a target as a vector.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tap_core.triggers.base import ExampleIndicator

if TYPE_CHECKING:
    from torch import Tensor

    from tap_core.model.adapters import ParameterSet
    from tap_core.model.tap_model import TapModel
    from tap_core.tasks.batch import TaskBatch

LEAST = 5
"""Examples below which the unbiased estimate without one of them is not defined; no score then."""


class Alignment(ExampleIndicator):
    def scores(self, model: "TapModel", parameter_set: "ParameterSet", batch: "TaskBatch") -> "Tensor":
        return self.of_all(model, parameter_set, [batch])

    def of_all(self, model: "TapModel", parameter_set: "ParameterSet", batches: "Iterable[TaskBatch]") -> "Tensor":
        import torch

        from tap_core.tasks.decoders import pool

        x, targets = list["Tensor"](), list["Tensor"]()
        for batch in batches:
            x.append(pool(model.encode(batch, parameter_set)).double())
            targets.append(batch.target)
        if sum(map(len, x)) < LEAST:
            return torch.empty(0)
        return -pseudo_values(torch.cat(x), as_vectors(targets, model.embeddings))


def as_vectors(targets: "list[Tensor]", embeddings: "Tensor") -> "Tensor":
    """The targets of several batches, (n, ...) each, as float64 (n, c): numbers and pixels as they are, of a class its
    column, of a text the mean of its words' frozen embeddings."""
    import torch

    if targets[0].is_floating_point():
        return torch.cat([target.reshape(len(target), -1) for target in targets]).double()
    if targets[0].ndim == 1:
        classes = torch.cat(targets)
        return torch.eq(classes[:, None], classes.unique()).double()
    rows = []
    for target in targets:
        real = (target >= 0)[..., None]
        rows.append((embeddings[target.clamp(min=0)].double() * real).sum(1) / real.sum(1))
    return torch.cat(rows)


def pseudo_values(x: "Tensor", y: "Tensor") -> "Tensor":
    """(n, d) and (n, c) to the n jackknife pseudo-values of their alignment."""
    import torch

    n = len(x)
    k, m = x @ x.T, y @ y.T
    every = torch.arange(n, device=x.device)
    whole = cka(k, m)
    without = torch.stack([cka(*(g[every != j][:, every != j] for g in (k, m))) for j in range(n)])
    values: Tensor = n * whole - (n - 1) * without
    return values


def cka(k: "Tensor", m: "Tensor") -> "Tensor":
    """The alignment of two Gram matrices (n, n); 0 if one of them says nothing."""
    import torch

    scale = (hsic(k, k) * hsic(m, m)).clamp(min=0).sqrt()
    return torch.where(scale > 0, hsic(k, m) / scale, torch.zeros_like(scale))


def hsic(k: "Tensor", m: "Tensor") -> "Tensor":
    """The unbiased estimate of the Hilbert-Schmidt independence criterion, but for a factor of n alone."""
    n = len(k)
    k, m = (g - g.diag().diag() for g in (k, m))
    return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
