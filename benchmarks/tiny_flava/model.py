"""The shape of `tiny-flava` and the way in which its layers are run.

Pretraining runs the model exactly as tap_core's backbone does later: no multimodal [CLS] token, the first multimodal
layer (MoTE) on each modality's stream on its own, the second (MoME) on the tokens of all modalities together, and no
layer norm after it (docs/method.md section 3). This module knows FLAVA's classes; it knows neither data nor objectives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import FlavaConfig, FlavaModel

HIDDEN = 128
IMAGE_SIZE = 64
PATCH = 8
PATCHES = (IMAGE_SIZE // PATCH) ** 2
TEXT_POSITIONS = 128
VOCABULARY = 4000
IMAGE_MEAN = IMAGE_STD = (0.5, 0.5, 0.5)


def tiny_flava_config(vocabulary: int = VOCABULARY) -> FlavaConfig:
    """Image tower 4 layers, text tower 3, multimodal encoder 2, all 128 wide; under 2.5 million parameters."""
    layers = {
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.05,
        "layer_norm_eps": 1e-6,
    }
    return FlavaConfig(
        image_config={
            **layers,
            "num_hidden_layers": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "mask_token": False,
        },
        text_config={
            **layers,
            "num_hidden_layers": 3,
            "vocab_size": vocabulary,
            "max_position_embeddings": TEXT_POSITIONS,
        },
        multimodal_config={**layers, "num_hidden_layers": 2, "use_cls_token": False},
        hidden_size=HIDDEN,
        projection_dim=64,
        initializer_range=0.05,
        layer_norm_eps=1e-6,
        init_codebook=False,
    )


def new_model(config: FlavaConfig, seed: int) -> FlavaModel:
    """A FLAVA with random weights from ``seed``.

    Image positions start as two-dimensional sines and cosines, the projections into the multimodal width as identity.
    """
    torch.manual_seed(seed)
    model = FlavaModel(config)
    with torch.no_grad():
        model.image_model.embeddings.position_embeddings[:, 1:] = sine_positions(IMAGE_SIZE // PATCH, HIDDEN)
        model.image_to_mm_projection.weight.copy_(torch.eye(HIDDEN))
        model.text_to_mm_projection.weight.copy_(torch.eye(HIDDEN))
    return model


def sine_positions(side: int, width: int) -> Tensor:
    """(side * side, width) sines and cosines of the row and of the column, a quarter of the width each."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None, :].expand(side, side, -1)
    return torch.cat((rows, columns), dim=2).reshape(side * side, width)


def additive_mask(attention_mask: Tensor) -> Tensor:
    """(B, S) of ones and zeros -> (B, 1, 1, S) to be added to attention scores."""
    return (1.0 - attention_mask.float())[:, None, None] * torch.finfo(torch.float32).min


def encode_image(model: FlavaModel, pixels: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens of the image tower before and after the projection into the multimodal width.

    ``pixels`` (B, 3, 64, 64) normalised; ``kept`` (B, K) indices of the patches that the tower sees, all if None.
    Returns two (B, 1 + K, d): the tower's last hidden state and ``image_to_mm_projection`` of it.
    """
    tower = model.image_model
    tokens = tower.embeddings(pixels)
    if kept is not None:
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat((tokens[:, :1], patches), dim=1)
    hidden = tower.layernorm(tower.encoder(tokens).last_hidden_state)
    return hidden, model.image_to_mm_projection(hidden)


def encode_text(
    model: FlavaModel, ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `encode_image` for token ids (B, S); ``positions`` (B, S) replaces 0, 1, 2, ..."""
    hidden = model.text_model(input_ids=ids, attention_mask=attention_mask, position_ids=positions).last_hidden_state
    return hidden, model.text_to_mm_projection(hidden)


def mote(model: FlavaModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """First multimodal layer, on one modality's stream (B, S, d); ``mask`` is additive."""
    return model.multimodal_model.encoder.layer[0](tokens, mask)[0]


def mome(model: FlavaModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Second multimodal layer, on the tokens of one or both modalities (B, S, d); ``mask`` is additive."""
    return model.multimodal_model.encoder.layer[1](tokens, mask)[0]


def pool(tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean over the non-padding tokens: (B, S, d) -> (B, d)."""
    if attention_mask is None:
        return tokens.mean(dim=1)
    weights = attention_mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


@torch.no_grad()
def image_features(model: FlavaModel, pixels: Tensor) -> Tensor:
    """(B, 3, 64, 64) -> (B, d): mean-pooled tokens after both multimodal layers."""
    return pool(mome(model, mote(model, encode_image(model, pixels)[1])))


@torch.no_grad()
def text_features(model: FlavaModel, ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, S) -> (B, d): mean-pooled tokens after both multimodal layers."""
    mask = additive_mask(attention_mask)
    return pool(mome(model, mote(model, encode_text(model, ids, attention_mask)[1], mask), mask), attention_mask)
