"""ViLT: patch and word embeddings are the encoders, and of one encoder's layers the first 2L are the backbone.

It knows transformers' ViltModel (docs/method.md section 3). It does not know tasks, adapters or decoders. An image is
the square that the model was pretrained on, so its patches are all used, in their order: nothing is padded or drawn.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import ViltModel

from tap_core.foundations.base import Blocks, Encoder, Foundation
from tap_core.foundations.layers import as_block
from tap_core.foundations.loading import load_normalisation, load_tokenizer, load_weights

MODEL_TYPE = "vilt"
MEAN = STD = (0.5, 0.5, 0.5)
"""ViLT's own normalisation, used where the directory says none."""


def load(directory: Path) -> Foundation:
    """The ViLT in ``directory``. Raises UsageError if its files are damaged or incomplete."""
    model = load_weights(ViltModel, directory, "ViLT", add_pooling_layer=False)
    embeddings, config = model.embeddings, model.config
    tokenizer, special = load_tokenizer(directory)
    mean, std = load_normalisation(directory) or (MEAN, STD)
    return Foundation(
        family=MODEL_TYPE,
        encoders={
            "image": Encoder(
                cut=Cut(config.patch_size),
                patch=patch_layer(embeddings.patch_embeddings.projection),
                embed=ImageEmbedding(embeddings),
                adapted="patch",
            ),
            "text": Encoder(embed=TextEmbedding(embeddings)),
        },
        blocks=Blocks(as_block(layer, config.num_attention_heads) for layer in model.encoder.layer),
        stage_layers=4,
        word_embeddings=embeddings.text_embeddings.word_embeddings.weight,
        tokenizer=tokenizer,
        special=special,
        hidden=config.hidden_size,
        image_size=config.image_size // config.patch_size * config.patch_size,
        mean=mean,
        std=std,
        text_positions=config.max_position_embeddings,
    )


def patch_layer(convolution: nn.Conv2d) -> nn.Linear:
    """The convolution whose kernel is its stride, as what it is: a linear layer of a patch's values, the same tensors.

    LoRA on it is LoRA on the convolution: A a convolution of the kernel's size, B one of size 1.
    """
    weight = convolution.weight.flatten(1)  # (w, 3 * size * size), a view
    linear: nn.Linear = skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = convolution.get_parameter("bias")
    return linear


class Cut(nn.Module):
    """Pixels (B, 3, side, side) to the values of each patch in reading order, (B, patches, 3 * size * size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        across = pixels.unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))  # (B, 3, rows, size, columns, size)
        patches: Tensor = across.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return patches


class ImageEmbedding(nn.Module):
    """Embedded patches (B, patches, w) to a class token and patches with their positions, (B, S, w)."""

    class_token: nn.Parameter
    positions: nn.Parameter
    kinds: nn.Embedding

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.class_token, self.positions = embeddings.cls_token, embeddings.position_embeddings
        self.kinds = embeddings.token_type_embeddings

    def forward(self, patches: Tensor) -> Tensor:
        x = torch.cat([self.class_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return x + self.positions + self.kinds.weight[1]  # 1: tokens of an image


class TextEmbedding(nn.Module):
    """Token ids (B, S) to (B, S, w)."""

    words: nn.Module
    kinds: nn.Embedding

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.words, self.kinds = embeddings.text_embeddings, embeddings.token_type_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.words(input_ids=ids) + self.kinds.weight[0]  # 0: tokens of a text
        return embedded
