"""FLAVA: an image encoder, a text encoder and a multimodal encoder whose first 2L layers are the backbone.

It knows transformers' FlavaModel (METHOD.md section 3). It does not know tasks, adapters or decoders.
"""

from pathlib import Path

from torch import Tensor, nn
from transformers import FlavaModel

from tap_core.foundations.base import Block, Encoder, Foundation, SpecialTokens
from tap_core.foundations.loading import load_normalisation, load_tokenizer, load_weights, token_id

MODEL_TYPE = "flava"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""FLAVA's own normalisation, used where the directory has no preprocessor_config.json."""


def load(directory: Path) -> Foundation:
    """The FLAVA in ``directory``. Raises UsageError if its files are damaged or incomplete."""
    model = load_weights(FlavaModel, directory, "FLAVA")
    image, text, config = model.image_model, model.text_model, model.config
    tokenizer = load_tokenizer(directory)
    mean, std = load_normalisation(directory, MEAN, STD)
    return Foundation(
        family=MODEL_TYPE,
        encoders={
            "image": Encoder(
                embed=ImageEmbedding(image.embeddings),
                blocks=nn.ModuleList(block(layer) for layer in image.encoder.layer),
                norm=image.layernorm,
                project=model.image_to_mm_projection,
            ),
            "text": Encoder(
                embed=TextEmbedding(text.embeddings),
                blocks=nn.ModuleList(block(layer) for layer in text.encoder.layer),
                norm=text.layernorm,
                project=model.text_to_mm_projection,
            ),
        },
        blocks=nn.ModuleList(block(layer) for layer in model.multimodal_model.encoder.layer),
        word_embeddings=text.embeddings.word_embeddings.weight,
        tokenizer=tokenizer,
        special=SpecialTokens(token_id(tokenizer, "[PAD]"), token_id(tokenizer, "[CLS]"), token_id(tokenizer, "[SEP]")),
        hidden=config.multimodal_config.hidden_size,
        image_size=config.image_config.image_size,
        mean=mean,
        std=std,
        text_positions=config.text_config.max_position_embeddings,
    )


class ImageEmbedding(nn.Module):
    """Pixels (B, 3, side, side) to patches and a class token, (B, S, w)."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embeddings(pixels)


class TextEmbedding(nn.Module):
    """Token ids (B, S) to (B, S, w)."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids: Tensor) -> Tensor:
        return self.embeddings(input_ids=ids)


def block(layer: nn.Module) -> Block:
    """A FlavaLayer by standard names."""
    attention = layer.attention.attention
    return Block(
        norm1=layer.layernorm_before,
        q=attention.query,
        k=attention.key,
        v=attention.value,
        out=layer.attention.output.dense,
        norm2=layer.layernorm_after,
        up=layer.intermediate.dense,
        act=layer.intermediate.intermediate_act_fn,
        down=layer.output.dense,
        heads=attention.num_attention_heads,
    )
