"""What a foundation is: frozen transformer layers by standard names, the encoders made of them, and facts about both.

A family of models (FLAVA, ViLT, two towers) is a file beside this one that reads its weights and names its parts. What
stands here knows no family, no adapters and no tasks.

    pre-norm    x <- x + s1 * out(attention(norm1 x))    x <- x + s2 * down(act(up(norm2 x)))
    post-norm   x <- norm1(x + out(attention(x)))        x <- norm2(x + down(act(up(x))))

Shapes: B examples, S tokens of one modality, w an encoder's width, d hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor, nn

from tap_core.components import Modality


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


class Encoder(nn.Module):
    """The frozen way of one modality to the backbone: ``project(norm(blocks(embed(inputs))))``.

    ``embed``: pixels (B, 3, side, side) or token ids (B, S) to (B, S, w), positions included. ``project``: (B, S, w) to
    (B, S, d). ``causal``: each token attends to itself and those before it only. ``adapted``: a regular expression of
    the names, within this module, of the layers that `encoder/{m}` puts adapters on. ``trained``: the names of layers
    without pretrained weights, which belong to `encoder/{m}` and are trained in full.
    """

    def __init__(
        self,
        *,
        embed: nn.Module,
        blocks: nn.ModuleList,
        norm: nn.Module | None = None,
        project: nn.Module | None = None,
        causal: bool = False,
        adapted: str = r"blocks\.\d+\.(q|v)",
        trained: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.embed, self.blocks = embed, blocks
        self.norm = nn.Identity() if norm is None else norm
        self.project = nn.Identity() if project is None else project
        self.causal, self.adapted, self.trained = causal, adapted, trained


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
    blocks: nn.ModuleList
    """The backbone's pre-norm blocks, in order; the first 2L are used."""
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
