"""Two towers: any plain vision transformer, whose last 2L layers are the backbone, beside any plain text transformer.

It knows which parts transformers' models call by which names; docs/foundations.md has the form of the directory. It
does not know tasks, adapters or decoders.

    image   the vision tower's embedding and all its layers but the last 2L, as they are
    text    the whole text tower, and a new linear layer to the backbone's width where that is another

A tower is plain if its blocks, by the equations of `base`, give what transformers' own model gives: that is tried on
loading, with drawn inputs, so that a model with a part that nobody here knows is refused instead of run without it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import AutoModel

from tap_core.errors import UsageError
from tap_core.foundations.base import Block, Blocks, Encoder, Foundation
from tap_core.foundations.files import DUAL, find_towers, load_json
from tap_core.foundations.layers import as_block, part
from tap_core.foundations.loading import load_normalisation, load_tokenizer, load_weights

UNUSED = r"(^|\.)(pooler|head)\.|_projection\.|logit_|mask_token"
"""Tensors that nothing here reads, so that a tower's file may lack them."""

TOLERANCE = 1e-3
"""The largest difference from transformers' output, as a share of its largest value, with which a tower is plain."""


def load(directory: Path) -> Foundation:
    """The towers of ``directory``. Raises UsageError if files are damaged or incomplete, or a tower is not plain."""
    towers = find_towers(directory)
    models = {path: _load_tower(path) for path in sorted(set(towers.values()))}  # one directory may hold both
    vision, text = (_half(models[towers[tower]], tower) for tower in ("vision", "text"))
    del models  # and with them what else the files held
    size = _image_size(vision, load_json(directory / "config.json").get("image_size"), towers["vision"])
    blocks = _blocks(vision, towers["vision"])
    image = Encoder(embed=Embedding(vision))
    hidden, width = vision.config.hidden_size, text.config.hidden_size
    words = Encoder(
        embed=Embedding(text),
        blocks=_blocks(text, towers["text"]),
        norm=_module(text, "final_layer_norm"),
        project=None if width == hidden else skip_init(nn.Linear, width, hidden),
        new_projection=width != hidden,
    )
    word_embeddings = text.get_input_embeddings().weight
    pixels = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
    _try(vision, image, blocks, pixels, towers["vision"])
    _try(text, words, words.blocks, torch.arange(2, 8)[None], towers["text"])
    normalisation = load_normalisation(towers["vision"])
    if normalisation is None:
        raise UsageError(
            f"{towers['vision']} holds no preprocessor_config.json with image_mean and image_std; put the model's there"
        )
    tokenizer, special = load_tokenizer(towers["text"])
    if tokenizer.get_vocab_size() > len(word_embeddings):
        raise UsageError(f"{towers['text']}: the tokenizer has more words than the model; take the model's own")
    return Foundation(
        family=DUAL,
        encoders={"image": image, "text": words},
        blocks=blocks,
        stage_layers=1,
        word_embeddings=word_embeddings,
        tokenizer=tokenizer,
        special=special,
        hidden=hidden,
        image_size=size,
        mean=normalisation[0],
        std=normalisation[1],
        text_positions=_text_positions(text),
        ends_in_backbone="image",
    )


class Embedding(nn.Module):
    """Pixels (B, 3, side, side) or token ids (B, S) to (B, S, w), as the tower embeds them."""

    embeddings: nn.Module

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.embeddings = tower.embeddings
        self.norm = _module(tower, "pre_layrnorm") or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.embeddings(inputs))
        return embedded


def _load_tower(directory: Path) -> Any:
    """The model of a directory, whichever AutoModel says, and the text half of SigLIP, which it does not know."""
    kind = load_json(directory / "config.json").get("model_type")
    model_class = transformers.SiglipTextModel if kind == "siglip_text_model" else AutoModel
    return load_weights(model_class, directory, f"the tower {kind!r}", unused=UNUSED)


def _half(model: Any, tower: str) -> Any:
    """The tower itself, of a model that may hold both (CLIP, SigLIP)."""
    half: Any = part(model, f"{tower}_model") or model
    reads = hasattr(half.config, {"vision": "image_size", "text": "vocab_size"}[tower])
    if not reads or _module(half, "embeddings") is None or not _layers(half):
        raise UsageError(
            f"{model.name_or_path}: a {type(model).__name__} is no plain {tower} tower; take another model"
        )
    return half


def _module(tower: Any, path: str) -> nn.Module | None:
    inside = part(tower, path)
    return inside if isinstance(inside, nn.Module) else None


def _layers(tower: Any) -> nn.ModuleList:
    """Empty if there are none where transformers has them."""
    candidates = [part(tower, path) for path in ("encoder.layer", "encoder.layers", "layers")]
    return next((layers for layers in candidates if isinstance(layers, nn.ModuleList) and len(layers)), nn.ModuleList())


def _blocks(tower: Any, directory: Path) -> Blocks:
    try:
        return Blocks(as_block(layer, tower.config.num_attention_heads) for layer in _layers(tower))
    except UsageError as error:
        raise UsageError(f"{directory}: {error}") from None


def _image_size(vision: Any, wanted: object, directory: Path) -> int:
    """Side of an image in pixels: the tower's own, or another where its positions can be interpolated (DINOv2)."""
    own = vision.config.image_size
    sides = set(own) if isinstance(own, Sequence) else {own}
    if len(sides) != 1:
        raise UsageError(f"{directory}: images of {own} pixels are not square; take another vision tower")
    (side,) = sides
    if wanted is None or wanted == side:
        return int(side)
    patch, positions = vision.config.patch_size, part(vision, "embeddings.position_embeddings")
    if not isinstance(wanted, int) or wanted <= 0 or wanted % patch:
        raise UsageError(f"image_size = {wanted!r} is no multiple of the vision tower's patches of {patch} pixels")
    if not isinstance(positions, nn.Parameter) or not hasattr(vision.embeddings, "interpolate_pos_encoding"):
        raise UsageError(f"{directory} takes images of {side} pixels alone; leave image_size out")
    tokens = positions.new_empty(1, 1 + (wanted // patch) ** 2, positions.shape[-1])
    with torch.no_grad():
        between = vision.embeddings.interpolate_pos_encoding(tokens, wanted, wanted)
    vision.embeddings.position_embeddings = nn.Parameter(between, requires_grad=False)
    vision.embeddings.image_size = vision.embeddings.patch_embeddings.image_size = (wanted, wanted)
    return wanted


def _text_positions(text: Any) -> int:
    """Most tokens of a text; RoBERTa and its like begin to count after the padding."""
    first = part(text, "embeddings.position_embeddings.padding_idx")
    return int(text.config.max_position_embeddings) - (first + 1 if isinstance(first, int) else 0)


def _try(tower: Any, encoder: Encoder, blocks: Blocks, inputs: Tensor, directory: Path) -> None:
    """As `_require_plain`, also for towers whose parts do not even fit together as ours do."""
    try:
        _require_plain(tower, encoder, blocks, inputs, directory)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        raise UsageError(f"{directory}: a {type(tower).__name__} has parts that are not known; take another") from None


@torch.no_grad()
def _require_plain(tower: Any, encoder: Encoder, blocks: Blocks, inputs: Tensor, directory: Path) -> None:
    """Raises UsageError unless blocks and tower agree; finds out whether the tower is causal.

    The backbone goes on where a vision tower's last layer ends; a text tower's output is what it puts out.
    """
    expected: Tensor
    if encoder.blocks:
        expected = tower(inputs).last_hidden_state
    else:
        outputs: list[Any] = []
        hook = _layers(tower)[-1].register_forward_hook(lambda *call: outputs.append(call[-1]))
        tower(inputs)
        hook.remove()
        expected = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    for causal in (False, True):
        x = encoder.embed(inputs)
        for block in blocks:
            x = _run(block, x, causal)
        if ((encoder.norm(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()).item():
            encoder.causal = causal
            return
    raise UsageError(
        f"{directory}: a {type(tower).__name__} does more than its layers show, as a bias by position; take another"
    )


def _run(block: Block, x: Tensor, causal: bool) -> Tensor:
    """The equations of `base`, without adapters, groups or padding."""
    h = block.norm1(x) if block.pre_norm else x
    query, key, value = (
        layer(h).unflatten(-1, (block.heads, -1)).transpose(1, 2) for layer in (block.q, block.k, block.v)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    out = block.out(mixed.transpose(1, 2).flatten(2))
    x = x + (out if block.scale1 is None else out * block.scale1)
    x = x if block.pre_norm else block.norm1(x)
    out = block.down(block.act(block.up(block.norm2(x) if block.pre_norm else x)))
    x = x + (out if block.scale2 is None else out * block.scale2)
    return x if block.pre_norm else block.norm2(x)
