"""What is computed rather than trained, from the train splits alone: where training starts, and one target it has.

- Word embeddings start from the words' co-occurrence (positive pointwise mutual information, factorised: Levy and
  Goldberg 2014), which a small corpus tells better in closed form than by gradient steps.
- An image's sketch: histograms of oriented gradients (the target of MaskFeat, arXiv 2112.09133) and coarse colour,
  reduced to whitened principal components. Pooled tokens learn to tell it.

No label of any task appears here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_flava.vocabulary import SPECIAL

WORD_SCALE = 0.1
"""Standard deviation of the starting embeddings: word logits, tied to them, start near one."""

COMPONENTS = 80
CELL = 8
ORIENTATIONS = 9


def word_embeddings(texts: list[list[int]], vocabulary: int, width: int, seed: int) -> Tensor:
    """(vocabulary, width) from which words share a text. Every row has mean 0 and deviation ``WORD_SCALE``."""
    together = torch.zeros(vocabulary, vocabulary)
    for start in range(0, len(texts), 4096):
        part = texts[start : start + 4096]
        present = torch.zeros(len(part), vocabulary)
        for row, ids in enumerate(part):
            present[row, ids] = 1.0
        present[:, : len(SPECIAL)] = 0.0
        together += present.T @ present
    together.fill_diagonal_(0.0)
    share = together.sum(dim=1) / together.sum()
    context = share.pow(0.75) / share.pow(0.75).sum()  # smoothed, so that rare contexts do not win
    expected = (share[:, None] * context[None]).clamp(min=1e-12)
    information = (together / together.sum() / expected).clamp(min=1.0).log()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, singular, _ = torch.svd_lowrank(information, q=width + 32, niter=4)
        noise = torch.randn(vocabulary, width) * 1e-3  # tells words without company (the special tokens) apart
    found = left[:, :width] * singular[:width].sqrt() + noise
    return F.layer_norm(found, (width,)) * WORD_SCALE


def gradients_and_colour(pixels: Tensor) -> Tensor:
    """Normalised (B, 3, 64, 64) -> (B, 64 * (9 + 3)): oriented gradients and mean colour of each 8 x 8 cell."""
    grey = F.pad(pixels.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    down = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    strength = (across.square() + down.square() + 1e-8).sqrt()
    angle = torch.atan2(down, across) % torch.pi / torch.pi * ORIENTATIONS
    lower = angle.floor()
    upper_share = angle - lower
    first = lower.long() % ORIENTATIONS
    histogram = torch.zeros(len(pixels), ORIENTATIONS, *pixels.shape[2:])
    histogram.scatter_(1, first, strength * (1 - upper_share))
    histogram.scatter_add_(1, (first + 1) % ORIENTATIONS, strength * upper_share)
    cells = F.avg_pool2d(histogram, CELL)
    cells = cells / (cells.square().sum(dim=1, keepdim=True) + 0.01).sqrt()
    return torch.cat((cells.flatten(1), F.avg_pool2d(pixels, CELL).flatten(1) / 2), dim=1)


@dataclass(frozen=True)
class Sketch:
    """Whitened principal components of `gradients_and_colour`, fitted on some images."""

    mean: Tensor
    basis: Tensor

    @classmethod
    def fitted(cls, pixels: Tensor, components: int = COMPONENTS) -> Sketch:
        features = torch.cat([gradients_and_colour(part) for part in pixels.split(512)])
        variance, axes = torch.linalg.eigh(torch.cov(features.T))
        variance, axes = variance.flip(0)[:components], axes.flip(1)[:, :components]
        return cls(features.mean(dim=0), axes / variance.sqrt())

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, 64, 64) -> (B, components), about unit variance."""
        return ((gradients_and_colour(pixels) - self.mean) @ self.basis).clamp(-4, 4)
