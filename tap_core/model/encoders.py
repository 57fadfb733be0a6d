"""A frozen encoder with the adapters of its component, for both parameter sets (METHOD.md section 3, item 1).

It knows `Encoder` and adapters. It does not know what a foundation's family is, nor the backbone.
"""

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tap_core.components import Modality, encoder
from tap_core.foundations.base import Encoder
from tap_core.model.adapters import (
    PARAMETER_SETS,
    ParameterSet,
    adapter_name,
    adapter_parameters,
    add_adapters,
    routed,
    share_frozen,
)
from tap_core.model.transformer import attend, transform
from tap_core.settings.federation import LoraConfig


class AdaptedEncoder(nn.Module):
    """Pixels or token ids of one modality to the backbone's tokens."""

    def __init__(self, frozen: Encoder, modality: Modality, lora: LoraConfig) -> None:
        super().__init__()
        self.encoder = share_frozen(frozen)
        self.modality = modality
        if any(re.fullmatch(frozen.adapted, name) for name, _ in frozen.named_modules()):
            add_adapters(self.encoder, encoder(modality), frozen.adapted, lora.encoder, lora.dropout)
        self.projections = nn.ModuleDict()
        if frozen.new_projection:  # each parameter set has its own
            self.encoder.project = nn.Identity()
            for which in PARAMETER_SETS:
                self.projections[which] = copy.deepcopy(frozen.project).requires_grad_(True)

    def parameters_of(self, parameter_set: ParameterSet) -> dict[str, nn.Parameter]:
        """The trainable parameters of `encoder/{m}` in one set, by name. A modality may have none."""
        found = adapter_parameters(self.encoder, parameter_set, encoder(self.modality))
        if parameter_set in self.projections:
            found |= {f"project.{name}": p for name, p in self.projections[parameter_set].named_parameters()}
        return found

    def forward(self, inputs: Tensor, mask: Tensor | None, parameter_set: ParameterSet) -> Tensor:
        """``inputs``: pixels (B, 3, side, side) or token ids (B, S), with the texts' bool mask (B, S); (B, S, d)."""
        tokens = self._tokens(inputs, mask, [adapter_name(parameter_set, encoder(self.modality))])
        return self.projections[parameter_set](tokens) if parameter_set in self.projections else tokens

    @torch.no_grad()
    def frozen(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """As `forward` without any adapter and without new layers: what the pretrained encoder makes of the inputs."""
        return self._tokens(inputs, mask, [])

    def _tokens(self, inputs: Tensor, mask: Tensor | None, names: Sequence[str]) -> Tensor:
        (patches,) = routed((self.encoder.patch,), self.encoder.cut(inputs)[None], names)
        x = self.encoder.embed(patches[0])[None]  # one group: every example of a modality takes the same way
        for block in self.encoder.blocks:
            x = transform(block, attend(block, x, mask, names, self.encoder.causal), names)
        (projected,) = routed((self.encoder.project,), self.encoder.norm(x), names)
        return projected[0]
