"""Frozen products with low-rank updates: values and gradients of plain torch, with dropout and without."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tap_core.model.products import Frozen, LowRank, products

IN, OUT = 12, 10


def update(seed: int, rank: int, out: int = OUT) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, IN, generator=generator, dtype=torch.float64, requires_grad=True)
    B = torch.randn(out, rank, generator=generator, dtype=torch.float64, requires_grad=True)
    return LowRank(A, B, 0.5 + seed)


def frozen(seed: int, updates: list[LowRank], *, bias: bool = True) -> Frozen:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    return Frozen(weight, torch.randn(OUT, generator=generator, dtype=torch.float64) if bias else None, updates)


def plainly(x: Tensor, layer: Frozen, mask: Tensor | None, factor: float) -> Tensor:
    """(J, B, S, out), group by group."""
    repeat = max(1, len(layer.updates) // len(x))
    groups = []
    for index in range(len(x) * repeat if layer.updates else len(x)):
        one = x[index // repeat] if layer.updates else x[index]
        y = F.linear(one, layer.weight, layer.bias)
        if layer.updates:
            seen = one if mask is None else one * mask[index // repeat] * factor
            A, B, scale = layer.updates[index]
            y = y + F.linear(F.linear(seen, A), B) * scale
        groups.append(y)
    return torch.stack(groups)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("repeat", [1, 2])
def test_values_and_gradients_are_those_of_plain_torch(dropout: bool, repeat: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, IN, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.uint8) if dropout else None
    factor = 2.0 if dropout else 1.0
    layers = [
        frozen(1, [update(index, 2) for index in range(2 * repeat)]),
        frozen(2, []),
        frozen(3, [update(index + 9, 3) for index in range(2 * repeat)], bias=False),
    ]
    leaves = [x, *(tensor for layer in layers for u in layer.updates for tensor in (u.A, u.B))]
    given = products(x, layers, mask, factor)
    expected = [plainly(x, layer, mask, factor) for layer in layers]
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in expected]
    for y, wanted in zip(given, expected, strict=True):
        torch.testing.assert_close(y, wanted)
    got = torch.autograd.grad(sum((y * w).sum() for y, w in zip(given, weights, strict=True)), leaves)
    wanted = torch.autograd.grad(sum((y * w).sum() for y, w in zip(expected, weights, strict=True)), leaves)
    for gradient, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_mean_over_groups_is_that_of_the_separate_products(dropout: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 3, 5, IN, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.uint8) if dropout else None
    layer = frozen(1, [update(index, 2) for index in range(4)])
    leaves = [x, *(tensor for u in layer.updates for tensor in (u.A, u.B))]
    (given,) = products(x, [layer], mask, 2.0 if dropout else 1.0, mean=True)
    expected = plainly(x, layer, mask, 2.0 if dropout else 1.0).mean(0, keepdim=True)
    torch.testing.assert_close(given, expected)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for gradient, right in zip(
        torch.autograd.grad((given * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(gradient, right)


def test_one_adapter_may_serve_several_groups_and_some_may_be_frozen() -> None:
    x = torch.randn(4, 2, 3, IN, dtype=torch.float64, requires_grad=True)
    own, shared = update(1, 2), update(2, 2)
    own.A.requires_grad_(False)
    own.B.requires_grad_(False)
    layer = frozen(1, [own, own, shared, shared])
    leaves = [x, shared.A, shared.B]
    (given,) = products(x, [layer])
    expected = plainly(x, layer, None, 1.0)
    for gradient, right in zip(
        torch.autograd.grad(given.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(gradient, right)


def test_without_a_gradient_for_the_input_none_is_computed() -> None:
    x = torch.randn(1, 2, 3, IN, dtype=torch.float64)
    one = update(1, 2)
    (y,) = products(x, [frozen(1, [one])])
    y.sum().backward()
    assert x.grad is None and one.A.grad is not None and one.B.grad is not None


def test_with_b_zero_the_product_is_the_frozen_one_bit_for_bit() -> None:
    x = torch.randn(2, 3, 5, IN)
    weight, bias = torch.randn(OUT, IN), torch.randn(OUT)
    updates = [LowRank(torch.full((2, IN), 3.0), torch.zeros(OUT, 2), 2.0)] * 2
    (y,) = products(x, [Frozen(weight, bias, updates)])
    assert torch.equal(y, products(x, [Frozen(weight, bias)])[0])
