"""A frozen encoder with the adapters of its component, for both parameter sets (METHOD.md section 3, item 1).

It knows `Encoder` and adapters. It does not know what a foundation's family is, nor the backbone.
"""

from torch import Tensor, nn

from tap_core.components import Modality, encoder
from tap_core.foundations.base import Encoder
from tap_core.model.adapters import ParameterSet, adapter_name, add_adapters, routed, share_frozen
from tap_core.model.transformer import attend, transform
from tap_core.settings.federation import LoraConfig


class AdaptedEncoder(nn.Module):
    """Pixels or token ids of one modality to the backbone's tokens."""

    def __init__(self, frozen: Encoder, modality: Modality, lora: LoraConfig) -> None:
        super().__init__()
        self.encoder = share_frozen(frozen)
        self.modality = modality
        add_adapters(self.encoder, encoder(modality), frozen.adapted, lora.encoder, lora.dropout)

    def forward(self, inputs: Tensor, mask: Tensor | None, parameter_set: ParameterSet) -> Tensor:
        """``inputs``: pixels (B, 3, side, side) or token ids (B, S), with the texts' bool mask (B, S); (B, S, d)."""
        names = [adapter_name(parameter_set, encoder(self.modality))]
        x = self.encoder.embed(inputs)[None]  # one group: every example of a modality takes the same way
        if mask is None:
            mask = x.new_ones(x.shape[1:3], dtype=bool)
        for block in self.encoder.blocks:
            x = transform(block, attend(block, x, mask, names, self.encoder.causal), names)
        return routed(self.encoder.project, self.encoder.norm(x), names)[0]
