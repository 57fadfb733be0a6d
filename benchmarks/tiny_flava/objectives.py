"""The self-supervised objectives and the heads they need. The heads are thrown away after pretraining.

Each head reads a layer norm of the multimodal encoder's output, because that output is what tap_core's decoders read
(through layer norms of their own). No label of any task appears here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import FlavaModel

from tiny_flava.model import HIDDEN, PATCH, PATCHES, sine_positions
from tiny_flava.priors import COMPONENTS

COARSE = 16


class Heads(nn.Module):
    """Everything that is trained beside FlavaModel."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.pooled_norm = nn.LayerNorm(HIDDEN)
        self.word = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.LayerNorm(HIDDEN))
        self.word_bias = nn.Parameter(torch.zeros(vocabulary))
        self.bag = nn.Linear(HIDDEN, HIDDEN)
        self.bag_bias = nn.Parameter(torch.zeros(vocabulary))
        self.image_view = _projector()
        self.text_view = _projector()
        self.meeting = nn.ModuleDict({"image": nn.Linear(HIDDEN, 64), "text": nn.Linear(HIDDEN, 64)})
        self.temperature = nn.Parameter(torch.tensor(2.3))
        self.sketch = nn.Linear(HIDDEN, COMPONENTS)
        self.match = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 2))
        self.coarse = nn.Sequential(nn.Linear(HIDDEN, 256), nn.GELU(), nn.Linear(256, 3 * COARSE * COARSE))
        self.hidden_patch = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.patch_positions = nn.Parameter(sine_positions(round(PATCHES**0.5), HIDDEN)[None])
        self.patch_decoder = nn.TransformerEncoderLayer(
            HIDDEN, 4, 256, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.pixels = nn.Linear(HIDDEN, 3 * PATCH * PATCH)


def _projector() -> nn.Sequential:
    return nn.Sequential(nn.Linear(HIDDEN, 256), nn.GELU(), nn.Linear(256, 64))


def patches_of(pixels: Tensor) -> Tensor:
    """(B, 3, 64, 64) -> (B, 64, 192): the pixels of each patch, row by row."""
    count, channels, height, width = pixels.shape
    grid = pixels.reshape(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(count, PATCHES, channels * PATCH * PATCH)


def masked_patches(heads: Heads, tokens: Tensor, kept: Tensor, hidden: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error of the hidden patches' pixels, each patch normalised (as in MAE, arXiv 2111.06377).

    ``tokens`` (B, 1 + K, d) are those of the kept patches after the multimodal layers.
    """
    seen = heads.norm(tokens)
    width = seen.shape[2]
    positions = heads.patch_positions.expand(len(seen), -1, -1)

    def at(index: Tensor) -> Tensor:
        return positions.gather(1, index[..., None].expand(-1, -1, width))

    blanks = heads.hidden_patch + at(hidden)
    decoded = heads.patch_decoder(torch.cat((seen[:, :1], seen[:, 1:] + at(kept), blanks), dim=1))
    predicted = heads.pixels(decoded[:, -hidden.shape[1] :])
    target = patches_of(pixels)
    target = target.gather(1, hidden[..., None].expand(-1, -1, target.shape[2]))
    mean, variance = target.mean(dim=2, keepdim=True), target.var(dim=2, keepdim=True)
    # A blank patch has no structure to predict: the floor keeps its noise from being blown up to unit variance.
    return F.mse_loss(predicted, (target - mean) / (variance + 1e-2).sqrt())


def coarse_image(heads: Heads, pooled: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error of the image at 16 x 16 from the pooled tokens of a part of its patches."""
    target = F.avg_pool2d(pixels, pixels.shape[2] // COARSE).flatten(1)
    return F.mse_loss(heads.coarse(heads.pooled_norm(pooled)), target)


def sketched(heads: Heads, pooled: Tensor, sketch: Tensor) -> Tensor:
    """Mean squared error of the image's sketch (B, components; see priors.py) from the pooled tokens."""
    return F.mse_loss(heads.sketch(heads.pooled_norm(pooled)), sketch)


def masked_words(heads: Heads, model: FlavaModel, tokens: Tensor, chosen: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy at the chosen positions; the output words are tied to the text tower's embeddings."""
    found = heads.word(heads.norm(tokens[chosen]))
    logits = F.linear(found, model.text_model.embeddings.word_embeddings.weight, heads.word_bias)
    return F.cross_entropy(logits, ids[chosen])


def bag_of_words(heads: Heads, model: FlavaModel, pooled: Tensor, bags: Tensor) -> Tensor:
    """Cross-entropy between a text's words (B, V), weights that sum to one, and those that its pooled tokens tell."""
    told = heads.bag(heads.pooled_norm(pooled))
    logits = F.linear(told, model.text_model.embeddings.word_embeddings.weight, heads.bag_bias)
    return -(bags * logits.log_softmax(dim=1)).sum(dim=1).mean()


def bags(batches: list[Tensor], weights: Tensor) -> Tensor:
    """(B, V): for each row the words of all the given ids (B, S), each word once, weighted and summing to one."""
    found = torch.zeros(len(batches[0]), len(weights))
    for ids in batches:
        found.scatter_(1, ids, 1.0)
    found = found * weights
    return found / found.sum(dim=1, keepdim=True).clamp(min=1e-6)


def two_views(first: Tensor, second: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent (SimCLR, arXiv 2002.05709) between the projections of two views, (B, 64) each."""
    views = F.normalize(torch.cat((first, second)), dim=1)
    scores = views @ views.T / temperature
    scores = scores.masked_fill(torch.eye(len(views), dtype=torch.bool), float("-inf"))
    partner = torch.arange(len(views)).roll(len(first))
    return F.cross_entropy(scores, partner)


def contrast(first: Tensor, second: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Symmetric cross-entropy of matching rows (CLIP, arXiv 2103.00020), and the scores (B, B) before scaling."""
    scores = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    target = torch.arange(len(scores))
    loss = (F.cross_entropy(scores * scale, target) + F.cross_entropy(scores.T * scale, target)) / 2
    return loss, scores


def matching(heads: Heads, right: Tensor, wrong: Tensor) -> Tensor:
    """Cross-entropy of telling pooled right pairs from pooled wrong ones, (B, d) each."""
    logits = heads.match(heads.pooled_norm(torch.cat((right, wrong))))
    target = torch.cat((torch.ones(len(right)), torch.zeros(len(wrong)))).long()
    return F.cross_entropy(logits, target)
