"""LoRA adapters on frozen modules, keyed by parameter set and component, with peft (docs/method.md section 3).

One frozen linear layer carries many adapters: one per component that passes through it, for each of the two parameter
sets. This module injects them, lists their parameters and applies several of them at once. It does not know layers.

    y = W x + b + (alpha / r) B A dropout(x)

B starts at zero, so a new adapter computes the pretrained function (docs/method.md section 8, trap 7).
"""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tap_core.model.dropout import is_off, kept
from tap_core.model.products import Frozen, LowRank, products
from tap_core.names import ComponentName
from tap_core.settings.federation import LoraRank

ParameterSet = Literal["federated", "personal"]
PARAMETER_SETS: tuple[ParameterSet, ...] = get_args(ParameterSet)

M = TypeVar("M", bound=nn.Module)


def share_frozen(module: M) -> M:
    """A copy of the module's structure over the same parameter and buffer tensors.

    Adapters injected into the copy leave the original as it was, and the frozen weights stay once in memory.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=shared)


def adapter_name(parameter_set: ParameterSet, component: ComponentName) -> str:
    return f"{parameter_set}:{component}"


def add_adapters(root: nn.Module, component: ComponentName, targets: str, rank: LoraRank, dropout: float) -> None:
    """Give the linear layers of ``root`` whose names match the expression ``targets`` an adapter for each set."""
    for parameter_set in PARAMETER_SETS:
        config = PeftLoraConfig(r=rank.rank, lora_alpha=rank.alpha, lora_dropout=dropout, target_modules=targets)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters: on purpose
            inject_adapter_in_model(config, root, adapter_name=adapter_name(parameter_set, component))


def adapter_parameters(
    root: nn.Module, parameter_set: ParameterSet, component: ComponentName
) -> dict[str, nn.Parameter]:
    """The A (r, in) and B (out, r) of one component in one set, named by the layers that they adapt."""
    name = adapter_name(parameter_set, component)
    found: dict[str, nn.Parameter] = {}
    for path, module in root.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            found[f"{path}.lora_A"] = module.lora_A[name].weight
            found[f"{path}.lora_B"] = module.lora_B[name].weight
    return found


def initialise_adapter(parameters: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    """Kaiming-uniform A and zero B, drawn in order of names from ``generator``; a new layer's weight as A, bias 0."""
    for name in sorted(parameters):
        with torch.no_grad():
            if name.endswith((".lora_B", ".bias")):
                parameters[name].zero_()
            else:
                bound = 1 / math.sqrt(parameters[name].shape[1])
                drawn = torch.empty(parameters[name].shape).uniform_(-bound, bound, generator=generator)
                parameters[name].copy_(drawn)  # the same values whatever device the parameter is on


def routed(
    layers: Sequence[nn.Module], x: Tensor, adapters: Sequence[str], *, mean: bool = False
) -> tuple[Tensor, ...]:
    """The product of ``x`` with each of several layers that read it, with each group's own adapter: hard routing.

    ``x``: (G, B, S, in); ``adapters``: one name for each of J output groups, of which J / G consecutive ones read the
    same group of ``x`` (`tap_core.model.products`). Returns for each layer (J, B, S, out), or (G, B, S, out) if the
    layer carries none of the adapters or none is named; with ``mean`` the mean over the groups, (1, B, S, out), and
    then G = J or 1.
    """
    if not adapters:
        return tuple((layer.get_base_layer() if isinstance(layer, LoraLayer) else layer)(x) for layer in layers)
    if not any(isinstance(layer, LoraLayer) for layer in layers):
        plain = tuple(layer(x, adapters) if isinstance(layer, MergedLinear) else layer(x) for layer in layers)
        return tuple(y.mean(0, keepdim=True) for y in plain) if mean else plain
    first = next(layer for layer in layers if isinstance(layer, LoraLayer))
    dropout = first.lora_dropout[adapters[0]]
    mask, factor = None, 1.0
    if isinstance(dropout, nn.Dropout) and dropout.training and not is_off():
        mask, factor = kept(x.shape, dropout.p, x.device)  # one for all layers: they read the same values
    return products(x, [_frozen(layer, adapters) for layer in layers], mask, factor, mean=mean)


def _frozen(layer: nn.Module, adapters: Sequence[str]) -> Frozen:
    """The layer's frozen matrix, and the adapters of these names if it has any."""
    if not isinstance(layer, LoraLayer):
        assert isinstance(layer, nn.Linear)
        return Frozen(layer.weight, layer.bias)
    base = layer.get_base_layer()
    updates = [LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]) for name in adapters]
    return Frozen(base.weight, base.bias, updates)


def merge(root: nn.Module, adapters: Sequence[str], *, route: bool) -> None:
    """Replace every adapted layer of ``root`` by plain linear algebra with the named adapters merged into the weights.

    With ``route`` the layers take several groups, each with its own adapter, as ``routed`` does; without, they become
    ordinary linear layers with the one named adapter that they carry.
    """
    for path, layer in list(root.named_modules()):
        if isinstance(layer, LoraLayer):
            merged = MergedLinear(layer, adapters)
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, merged if route else merged.as_linear())


class MergedLinear(nn.Module):
    """A linear layer with some adapters merged into copies of its weight, for export: W + (alpha / r) B A each."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: LoraLayer, adapters: Sequence[str]) -> None:
        super().__init__()
        base = layer.get_base_layer()
        assert isinstance(base, nn.Linear)
        self.names = tuple(name for name in sorted(set(adapters)) if name in layer.lora_A)
        merged = [base.weight + layer.get_delta_weight(name) for name in self.names]
        self.register_buffer("weight", torch.stack(merged).detach())  # (adapters, out, in)
        self.register_buffer("bias", None if base.bias is None else base.bias.detach())

    def as_linear(self) -> nn.Linear:
        """The layer with its only adapter. Raises ValueError if there are several."""
        if len(self.names) != 1:
            raise ValueError(f"one adapter is needed to make a linear layer; there are {len(self.names)}")
        weight = self.weight[0]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=self.bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias, requires_grad=False)
        return linear

    def forward(self, x: Tensor, adapters: Sequence[str]) -> Tensor:
        """``x``: (G, B, S, in); returns (J, B, S, out), of which J / G consecutive groups read the same one of x."""
        weight = self.weight[[self.names.index(name) for name in adapters]]  # (J, out, in)
        x = x if len(x) == len(adapters) else x.repeat_interleave(len(adapters) // len(x), dim=0)
        y = x @ weight.transpose(1, 2).unsqueeze(1)
        return y if self.bias is None else y + self.bias
