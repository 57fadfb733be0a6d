"""A frozen encoder with the adapters of its component, for both parameter sets (docs/method.md section 3, item 1).

It knows `Encoder` and adapters. It does not know what a foundation's family is, nor the backbone.
"""

import copy
import re
from collections.abc import Mapping, ValuesView
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tap_core.components import Modality, encoder
from tap_core.foundations.base import Block, Encoder
from tap_core.model.adapters import (
    PARAMETER_SETS,
    ParameterSet,
    adapter_name,
    adapter_parameters,
    add_adapters,
    routed,
    share_frozen,
)
from tap_core.model.recompute import run
from tap_core.model.transformer import attend, transform
from tap_core.settings.federation import LoraConfig


class AdaptedEncoder(nn.Module):
    """Pixels or token ids of one modality to the backbone's tokens."""

    def __init__(self, frozen: Encoder, modality: Modality, lora: LoraConfig) -> None:
        super().__init__()
        self.encoder = share_frozen(frozen)
        self.modality = modality
        self.recompute = False
        """Whether blocks' activations are computed again in the backward pass instead of being kept."""
        adapted = _adapted(frozen, lora.encoder_layers)
        if adapted:
            add_adapters(self.encoder, encoder(modality), "|".join(map(re.escape, adapted)), lora.encoder, lora.dropout)
        in_blocks = [_block_of(name) for name in adapted]
        self.frozen_blocks = 0 if None in in_blocks else min((i for i in in_blocks if i is not None), default=0)
        """How many blocks lie below the first adapter: their output is the same whatever has been trained."""
        self.projections = nn.ModuleDict()
        if frozen.new_projection:  # each parameter set has its own
            self.encoder.project = nn.Identity()
            for parameter_set in PARAMETER_SETS:
                self.projections[parameter_set] = copy.deepcopy(frozen.project).requires_grad_(True)

    def parameters_of(self, parameter_set: ParameterSet) -> dict[str, nn.Parameter]:
        """The trainable parameters of `encoder/{m}` in one set, by name. A modality may have none."""
        parameters = adapter_parameters(self.encoder, parameter_set, encoder(self.modality))
        if parameter_set in self.projections:
            parameters |= {f"project.{name}": p for name, p in self.projections[parameter_set].named_parameters()}
        return parameters

    def train(self, mode: bool = True) -> "AdaptedEncoder":
        """What is frozen draws no dropout of its own: some text models have one in their embeddings."""
        super().train(mode)
        self.encoder.embed.eval()
        return self

    @torch.no_grad()
    def prefix(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """What the first ``frozen_blocks`` blocks make of the inputs (as of `forward`), (B, S, w).

        Only where there are such blocks: with none, a layer below them may be trained."""
        x: Tensor = self.encoder.embed(self.encoder.patch(self.encoder.cut(inputs)))[None]
        for block in self.encoder.blocks[: self.frozen_blocks]:
            x = transform(block, attend(block, x, mask, (), self.encoder.causal), ())
        return x[0]

    @torch.no_grad()
    def frozen(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """As `forward` without any adapter and without new layers: what the pretrained encoder makes of the inputs."""
        (patches,) = routed((self.encoder.patch,), self.encoder.cut(inputs)[None], ())
        x = self.encoder.embed(patches[0])[None]
        for block in self.encoder.blocks:
            x = transform(block, attend(block, x, mask, (), self.encoder.causal), ())
        (projected,) = routed((self.encoder.project,), self.encoder.norm(x), ())
        return projected[0]

    def forward(
        self, inputs: Tensor, mask: Tensor | None, parameter_set: ParameterSet, prefix: Tensor | None = None
    ) -> Tensor:
        """``inputs``: pixels (B, 3, side, side) or token ids (B, S), with the texts' bool mask (B, S); (B, S, d).

        ``prefix``: what `prefix` gives of them, if it is known already.
        """
        names = [adapter_name(parameter_set, encoder(self.modality))]
        first = self.frozen_blocks
        if first:
            x = (self.prefix(inputs, mask) if prefix is None else prefix)[None]
        else:
            (patches,) = routed((self.encoder.patch,), self.encoder.cut(inputs)[None], names)
            x = self.encoder.embed(patches[0])[None]  # one group: every example of a modality takes the same way

        def through(block: Block, x: Tensor) -> Tensor:
            return transform(block, attend(block, x, mask, names, self.encoder.causal), names)

        for block in self.encoder.blocks[first:]:
            x = run(through, block, x, recompute=self.recompute)
        (projected,) = routed((self.encoder.project,), self.encoder.norm(x), names)
        return self.projections[parameter_set](projected[0]) if parameter_set in self.projections else projected[0]


class AdaptedEncoders(nn.ModuleDict):
    """The encoders of a device's modalities."""

    def __init__(self, encoders: Mapping[str, AdaptedEncoder]) -> None:
        super().__init__(encoders)

    if TYPE_CHECKING:  # torch says of a dictionary of modules no more than that they are modules

        def __getitem__(self, modality: str) -> AdaptedEncoder: ...
        def values(self) -> ValuesView[AdaptedEncoder]: ...


def _adapted(frozen: Encoder, layers: int | None) -> list[str]:
    """The names of the layers that take adapters: of those in blocks only the last ``layers`` blocks'."""
    names = [name for name, _ in frozen.named_modules() if re.fullmatch(frozen.adapted, name)]
    first = 0 if layers is None else len(frozen.blocks) - layers
    return [name for name in names if (index := _block_of(name)) is None or index >= first]


def _block_of(name: str) -> int | None:
    """The number of the block that a layer is in, None for a layer outside of blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return None if match is None else int(match[1])
