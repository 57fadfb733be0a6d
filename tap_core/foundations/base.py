"""What a foundation is: frozen transformer layers by standard names, the encoders made of them, and facts about both.

A family of models (FLAVA, ViLT, two towers) is a file beside this one that reads its weights and names its parts. What
stands here knows no family, no adapters and no tasks.

    pre-norm    x <- x + s1 * out(attention(norm1 x))    x <- x + s2 * down(act(up(norm2 x)))
    post-norm   x <- norm1(x + out(attention(x)))        x <- norm2(x + down(act(up(x))))

Shapes: B examples, S tokens of one modality, w an encoder's width, d hidden size, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from tokenizers import Tokenizer
from torch import Tensor, nn

from tap_core.components import Modality
from tap_core.errors import UsageError


class Block(nn.Module):
    """One frozen transformer layer. It holds the parts; `tap_core.model.transformer` runs them.

    ``norm1``, ``norm2``: layer norms; ``q``, ``k``, ``v``, ``out``, ``up``, ``down``: linear layers; ``act``: the
    activation between ``up`` and ``down``; ``scale1``, ``scale2``: learned scales (w,) of the two branches, or None.
    """

    def __init__(
        self,
        *,
        norm1: nn.Module,
        q: nn.Module,
        k: nn.Module,
        v: nn.Module,
        out: nn.Module,
        norm2: nn.Module,
        up: nn.Module,
        act: Callable[[Tensor], Tensor],
        down: nn.Module,
        heads: int,
        pre_norm: bool = True,
        scale1: nn.Parameter | None = None,
        scale2: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.q, self.k, self.v, self.out = norm1, q, k, v, out
        self.norm2, self.up, self.act, self.down = norm2, up, act, down
        self.heads, self.pre_norm = heads, pre_norm
        self.scale1, self.scale2 = scale1, scale2


class Blocks(nn.ModuleList):
    """Frozen layers, one after another; a part of them is `Blocks` too."""

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        super().__init__(blocks)

    if TYPE_CHECKING:  # torch says of a list of modules no more than that they are modules

        def __iter__(self) -> Iterator[Block]: ...

        @overload
        def __getitem__(self, place: slice) -> "Blocks": ...
        @overload
        def __getitem__(self, place: int) -> Block: ...
        def __getitem__(self, place: int | slice) -> "Blocks | Block": ...


class Encoder(nn.Module):
    """The frozen way of one modality to the backbone: ``project(norm(blocks(embed(patch(cut(inputs))))))``.

    ``cut`` and ``patch``, where patches take adapters: pixels to the values of each patch, (B, S, values), and a linear
    layer of them. ``embed``: what these put out, else pixels (B, 3, side, side) or token ids (B, S), to (B, S, w),
    positions included. ``project``: (B, S, w) to (B, S, d). ``causal``: each token attends to itself and those before
    it only. ``adapted``: a regular expression of the names, within this module, of the layers that `encoder/{m}` puts
    adapters on; there may be none. ``new_projection``: ``project`` has no pretrained weights, so it belongs to
    `encoder/{m}` and is trained in full.
    """

    def __init__(
        self,
        *,
        embed: nn.Module,
        blocks: Iterable[Block] = (),
        cut: nn.Module | None = None,
        patch: nn.Module | None = None,
        norm: nn.Module | None = None,
        project: nn.Module | None = None,
        causal: bool = False,
        adapted: str = r"blocks\.\d+\.(q|v)",
        new_projection: bool = False,
    ) -> None:
        super().__init__()
        self.cut, self.patch = cut or nn.Identity(), patch or nn.Identity()
        self.embed, self.blocks = embed, Blocks(blocks)
        self.norm, self.project = norm or nn.Identity(), project or nn.Identity()
        self.causal, self.adapted, self.new_projection = causal, adapted, new_projection


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that are no words. ``start`` begins a generated answer and ``end`` ends it."""

    pad: int
    start: int
    end: int


@dataclass(frozen=True)
class Foundation:
    """Frozen modules and the facts about them."""

    family: str
    encoders: Mapping[Modality, Encoder]
    blocks: Blocks
    """The pre-norm blocks that the backbone takes its 2L from, in order: the first, or see ``ends_in_backbone``."""
    stage_layers: int
    """L, where the federation's settings name none."""
    word_embeddings: Tensor
    """(V, width), frozen: text decoders read and write words through them."""
    tokenizer: Tokenizer
    special: SpecialTokens
    hidden: int
    """d, the backbone's width."""
    image_size: int
    """Side of an input image in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Normalisation of each colour: (pixel / 255 - mean) / std."""
    text_positions: int
    """Most tokens of a text."""
    ends_in_backbone: Modality | None = None
    """A modality that has no encoder blocks of its own: of ``blocks`` the last 2L are the backbone and those before
    them are its encoder's."""

    def split(self, stage_layers: int | None) -> tuple[dict[Modality, Encoder], Blocks]:
        """The encoders, and the backbone's 2L blocks.

        Args:
            stage_layers: L; None for the foundation's own.

        Returns:
            The encoders by modality, and the blocks in order.

        Raises:
            UsageError: There are fewer than 2L blocks.
        """
        layers = 2 * (self.stage_layers if stage_layers is None else stage_layers)
        if len(self.blocks) < layers:
            raise UsageError(
                f"model.stage_layers = {layers // 2} needs {layers} layers for the backbone and the foundation has "
                f"{len(self.blocks)}; lower it"
            )
        if self.ends_in_backbone is None:
            return dict(self.encoders), self.blocks[:layers]
        encoder = copy.copy(self.encoders[self.ends_in_backbone])  # the same frozen modules, and blocks of its own
        encoder._modules = {**encoder._modules, "blocks": self.blocks[:-layers]}
        return {**self.encoders, self.ends_in_backbone: encoder}, self.blocks[-layers:]
