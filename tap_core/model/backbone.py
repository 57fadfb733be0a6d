"""The backbone: L MoTE layers, then L MoME layers, over frozen pre-norm transformer layers (docs/method.md section 3).

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
from tap_core.foundations.base import Blocks
from tap_core.model.adapters import ParameterSet, adapter_name, add_adapters, share_frozen
from tap_core.model.recompute import run
from tap_core.model.transformer import attend, transform
from tap_core.names import ComponentName
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

    def __init__(
        self, blocks: Blocks, stage_layers: int, components: Sequence[ComponentName], lora: LoraConfig
    ) -> None:
        """Raises ValueError if there are fewer than ``2 * stage_layers`` layers."""
        super().__init__()
        if len(blocks) < 2 * stage_layers:
            raise ValueError(f"stage_layers = {stage_layers} needs {2 * stage_layers} layers; there are {len(blocks)}")
        self.recompute = False
        """Whether layers' activations are computed again in the backward pass instead of being kept."""
        self.mote = share_frozen(blocks[:stage_layers])
        self.mome = share_frozen(blocks[stage_layers : 2 * stage_layers])
        for component in components:
            if (targets := TARGETS.get(family(component))) is not None:
                rank = lora.attention if family(component).endswith("attention") else lora.expert
                add_adapters(self, component, targets, rank, lora.dropout)

    def forward(
        self,
        streams: Mapping[Modality, Tensor],
        masks: Mapping[Modality, Tensor | None],
        kind: TaskKind,
        parameter_set: ParameterSet,
    ) -> Tensor:
        """Tokens through the four paths.

        ``streams``: (B, S, d) by modality; ``masks``: bool (B, S), false where padding, or None where there is none.
        Returns the mean over the paths, (B, T, d), modalities in the order of ``streams``.
        """
        mask = _joined({m: (x, masks[m]) for m, x in streams.items()})
        parts = [self._mote(x, masks[m], m, kind, parameter_set) for m, x in streams.items()]  # each (P, B, S, d)
        attention = [adapter_name(parameter_set, mome_attention(path.kind_key(kind))) for path in PATHS]
        for index, layer in enumerate(self.mome):
            last = index == len(self.mome) - 1
            # all modalities meet here: (P, B, T, d)
            x = run(attend, layer, _concatenated(parts), mask, attention, recompute=self.recompute)
            pieces = [x] if len(parts) == 1 else x.split([part.shape[2] for part in parts], dim=2)
            parts = []
            for modality, piece in zip(streams, pieces, strict=True):
                experts = [mome_expert(path.kind_key(kind), path.modality_key(modality)) for path in PATHS]
                names = [adapter_name(parameter_set, expert) for expert in experts]
                parts.append(run(transform, layer, piece, names, last, recompute=self.recompute))
        return _concatenated(parts)[0]

    def _mote(
        self, x: Tensor, mask: Tensor | None, modality: Modality, kind: TaskKind, parameter_set: ParameterSet
    ) -> Tensor:
        """(B, S, d) to (P, B, S, d): one modality's stream on its own.

        Paths that share a modality key stay one group until the first expert tells them apart, and before the first
        attention all are one.
        """
        own, shared = (
            adapter_name(parameter_set, mote_attention(p.modality_key(modality))) for p in (PATHS[0], PATHS[-1])
        )
        experts = [adapter_name(parameter_set, mote_expert(p.modality_key(modality), p.kind_key(kind))) for p in PATHS]
        x = x[None]
        for index, layer in enumerate(self.mote):
            attention = [own, shared] if index == 0 else [own, own, shared, shared]
            x = run(attend, layer, x, mask, attention, recompute=self.recompute)
            x = run(transform, layer, x, experts, recompute=self.recompute)
        return x


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    """The modalities' tokens after one another, (P, B, T, d)."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)


def _joined(streams: Mapping[Modality, tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """The mask of all modalities' tokens, bool (B, T), or None if none has padding."""
    if all(mask is None for _, mask in streams.values()):
        return None
    whole = [x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask for x, mask in streams.values()]
    return torch.cat(whole, dim=1)
