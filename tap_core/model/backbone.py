"""The backbone: L MoTE layers, then L MoME layers, over frozen pre-norm transformer layers (METHOD.md section 3).

Every token stream takes the four paths of ``tap_core.components.PATHS``, stacked on a leading axis. Routing is hard:
the path, the modality and the task kind name the adapter of each linear layer. The backbone knows names of adapters and
shapes of streams; it does not know encoders, decoders or losses.

Shapes: P paths, B examples, S tokens of one modality, T tokens of all the task's modalities, d hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tap_core.components import (
    PATHS,
    Modality,
    TaskKind,
    family,
    mome_attention,
    mome_expert,
    mote_attention,
    mote_expert,
)
from tap_core.model.adapters import ParameterSet, adapter_name, add_adapters, share_frozen
from tap_core.model.transformer import attend, transform
from tap_core.settings.federation import LoraConfig

TARGETS = {
    "mote/attention": r"mote\.\d+\.(q|v)",
    "mote/expert": r"mote\.\d+\.(up|down)",
    "mome/attention": r"mome\.\d+\.(q|v)",
    "mome/expert": r"mome\.\d+\.(up|down)",
}
"""Which frozen linear layers the adapters of a component family sit on."""


class Backbone(nn.Module):
    """2L frozen layers and the adapters of the given components."""

    def __init__(self, blocks: nn.ModuleList, stage_layers: int, components: Sequence[str], lora: LoraConfig) -> None:
        """Raises ValueError if there are fewer than ``2 * stage_layers`` layers."""
        super().__init__()
        if len(blocks) < 2 * stage_layers:
            raise ValueError(f"stage_layers = {stage_layers} needs {2 * stage_layers} layers; there are {len(blocks)}")
        self.mote = share_frozen(blocks[:stage_layers])
        self.mome = share_frozen(blocks[stage_layers : 2 * stage_layers])
        for component in components:
            if (targets := TARGETS.get(family(component))) is not None:
                rank = lora.attention if family(component).endswith("attention") else lora.expert
                add_adapters(self, component, targets, rank, lora.dropout)

    def forward(
        self,
        streams: Mapping[Modality, Tensor],
        masks: Mapping[Modality, Tensor],
        kind: TaskKind,
        which: ParameterSet,
    ) -> tuple[Tensor, Tensor]:
        """Tokens through the four paths.

        ``streams``: (B, S, d) by modality; ``masks``: bool (B, S), false where padding. Returns the mean over the
        paths, (B, T, d), and the mask (B, T), modalities in the order of ``streams``.
        """
        stacked = {m: self._mote(x, masks[m], m, kind, which) for m, x in streams.items()}
        mask = torch.cat([masks[m] for m in streams], dim=1)  # (B, T)
        x = torch.cat(list(stacked.values()), dim=2)  # (P, B, T, d)
        lengths = [s.shape[2] for s in stacked.values()]
        attention = [adapter_name(which, mome_attention(path.kind_key(kind))) for path in PATHS]
        for layer in self.mome:
            x = attend(layer, x, mask, attention)  # all modalities meet here
            parts = []
            for modality, part in zip(streams, x.split(lengths, dim=2), strict=True):
                experts = [mome_expert(path.kind_key(kind), path.modality_key(modality)) for path in PATHS]
                parts.append(transform(layer, part, [adapter_name(which, e) for e in experts]))
            x = torch.cat(parts, dim=2)
        return x.mean(0), mask

    def _mote(self, x: Tensor, mask: Tensor, modality: Modality, kind: TaskKind, which: ParameterSet) -> Tensor:
        """(B, S, d) to (P, B, S, d): one modality's stream on its own."""
        own, shared = (adapter_name(which, mote_attention(p.modality_key(modality))) for p in (PATHS[0], PATHS[-1]))
        experts = [mote_expert(path.modality_key(modality), path.kind_key(kind)) for path in PATHS]
        x = x.expand(2, *x.shape)  # before the first expert, paths with the same a are equal: two groups, not four
        for index, layer in enumerate(self.mote):
            if index == 0:
                x = attend(layer, x, mask, [own, shared]).repeat_interleave(2, dim=0)  # (P, B, S, d)
            else:
                x = attend(layer, x, mask, [own, own, shared, shared])
            x = transform(layer, x, [adapter_name(which, e) for e in experts])
        return x
