"""FLAVA: an image encoder, a text encoder and a multimodal encoder whose first 2L layers are the backbone.

It knows transformers' FlavaModel (docs/method.md section 3). It does not know tasks, adapters or decoders.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import FlavaModel

from tap_core.foundations.base import Blocks, Encoder, Foundation
from tap_core.foundations.layers import as_block
from tap_core.foundations.loading import load_normalisation, load_tokenizer, load_weights

MODEL_TYPE = "flava"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""FLAVA's own normalisation, used where the directory has no preprocessor_config.json."""


def load(directory: Path) -> Foundation:
    """The FLAVA in ``directory``. Raises UsageError if its files are damaged or incomplete."""
    model = load_weights(FlavaModel, directory, "FLAVA")
    image, text, config = model.image_model, model.text_model, model.config
    tokenizer, special = load_tokenizer(directory)
    mean, std = load_normalisation(directory) or (MEAN, STD)
    return Foundation(
        family=MODEL_TYPE,
        encoders={
            "image": Encoder(
                embed=ImageEmbedding(image.embeddings),
                blocks=_blocks(image),
                norm=image.layernorm,
                project=model.image_to_mm_projection,
            ),
            "text": Encoder(
                embed=TextEmbedding(text.embeddings),
                blocks=_blocks(text),
                norm=text.layernorm,
                project=model.text_to_mm_projection,
            ),
        },
        blocks=_blocks(model.multimodal_model),
        stage_layers=1,
        word_embeddings=text.embeddings.word_embeddings.weight,
        tokenizer=tokenizer,
        special=special,
        hidden=config.multimodal_config.hidden_size,
        image_size=config.image_config.image_size,
        mean=mean,
        std=std,
        text_positions=config.text_config.max_position_embeddings,
    )


def _blocks(model: Any) -> Blocks:
    return Blocks(as_block(layer, model.config.num_attention_heads) for layer in model.encoder.layer)


class ImageEmbedding(nn.Module):
    """Pixels (B, 3, side, side) to patches and a class token, (B, S, w)."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, pixels: Tensor) -> Tensor:
        embedded: Tensor = self.embeddings(pixels)
        return embedded


class TextEmbedding(nn.Module):
    """Token ids (B, S) to (B, S, w)."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.embeddings(input_ids=ids)
        return embedded
