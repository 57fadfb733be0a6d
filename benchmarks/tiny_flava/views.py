"""Random views of images and texts for self-supervision: crops, colours, dropped patches, masked words.

Every function takes its own torch generator, so that a run depends on its seed alone.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tiny_flava.model import PATCHES, TEXT_POSITIONS
from tiny_flava.vocabulary import MASK, SPECIAL


def augmented(pixels: Tensor, generator: Generator) -> Tensor:
    """A light random crop, flip and change of brightness, contrast and tint of normalised (B, 3, 64, 64) images."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=generator)

    scale = uniform(0.6, 1.05)
    stretch = uniform(0.9, 1.1)
    shift = uniform(-1, 1, 2) * (1 - scale).clamp(min=0)[:, None]
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = scale * stretch * flip
    matrix[:, 1, 1] = scale / stretch
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    brightness = uniform(-0.15, 0.15, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    return (cropped * uniform(0.75, 1.2, 1, 1, 1) + brightness).clamp(-1.2, 1.2)


def split_patches(count: int, keep: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Indices of the patches kept (count, keep) and of those hidden (count, PATCHES - keep)."""
    order = torch.rand(count, PATCHES, generator=generator).argsort(dim=1)
    return order[:, :keep], order[:, keep:]


def masked(ids: Tensor, rate: float, vocabulary: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """BERT's masking: of the chosen words 8 in 10 become [MASK], 1 another word, 1 stays.

    Returns the changed ids (B, S) and a boolean (B, S) of the chosen positions. Special tokens are never chosen.
    """
    chosen = (torch.rand(ids.shape, generator=generator) < rate) & (ids >= len(SPECIAL))
    dice = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(SPECIAL), vocabulary, ids.shape, generator=generator)
    changed = torch.where(chosen & (dice < 0.8), torch.tensor(MASK), ids)
    return torch.where(chosen & (dice >= 0.9), other, changed), chosen


def shifted_positions(shape: torch.Size, generator: Generator, rate: float = 0.2) -> Tensor:
    """Positions (B, S); a share ``rate`` of the rows starts anywhere, so that late positions are trained too."""
    count, width = shape
    start = torch.randint(0, TEXT_POSITIONS - width + 1, (count, 1), generator=generator)
    start = start * (torch.rand(count, 1, generator=generator) < rate)
    return start + torch.arange(width)
