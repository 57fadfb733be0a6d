"""The task decoders: small heads on the backbone's tokens, trained in full (docs/method.md section 3, item 3).

They know shapes of tokens and outputs. They do not know where tokens come from, losses or parameter sets.
Shapes: B examples, T tokens, d hidden size, V vocabulary, w decoder width.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadSizes:
    """What a decoder's size depends on, beside its task. ``words``: shape (V, width) of the frozen word embeddings."""

    hidden: int
    heads: int
    words: torch.Size
    classifier_width: int
    image_width: int
    text_width: int
    text_layers: int


class Tokens(NamedTuple):
    """What the backbone puts out: ``values`` (B, T, d), bool ``mask`` (B, T) that is false where padding, and how many
    of the T are of each of the task's modalities, in order."""

    values: Tensor
    mask: Tensor
    lengths: tuple[int, ...]


def pool(tokens: Tokens) -> Tensor:
    """(B, d): the mean over modalities of each one's mean over tokens that are no padding, so that two hundred image
    tokens do not drown ten words."""
    parts = []
    for values, mask in zip(
        tokens.values.split(tokens.lengths, dim=1), tokens.mask.split(tokens.lengths, dim=1), strict=True
    ):
        weights = mask.unsqueeze(-1).to(values.dtype)
        parts.append((values * weights).sum(1) / weights.sum(1).clamp(min=1))
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


class PooledHead(nn.Module):
    """A few numbers from the pooled tokens, through one inner layer: to (B, outputs)."""

    def __init__(self, hidden: int, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, min(width, hidden))
        self.outer = nn.Linear(min(width, hidden), outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        output: Tensor = self.outer(F.gelu(self.inner(self.norm(pool(tokens)))))
        return output


class ImageDecoder(nn.Module):
    """An image from the pooled tokens: normalised pixels (B, 3, side, side), the side a multiple of 16."""

    def __init__(self, hidden: int, width: int, side: int) -> None:
        super().__init__()
        self.width, self.start = width, side // 16
        self.norm = nn.LayerNorm(hidden)
        self.seed = nn.Linear(hidden, width * self.start**2)
        channels = [width, max(width // 2, 4), max(width // 4, 4), max(width // 8, 4), 3]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, kernel_size=4, stride=2, padding=1) for i, o in itertools.pairwise(channels)
        )

    def forward(self, tokens: Tokens) -> Tensor:
        x = self.seed(self.norm(pool(tokens))).unflatten(1, (self.width, self.start, self.start))
        for layer in self.up:  # the side doubles each time
            x = layer(F.gelu(x))
        image: Tensor = x
        return image


class TextDecoder(nn.Module):
    """A causal transformer with cross-attention to the tokens; input and output words are the frozen embeddings."""

    def __init__(self, hidden: int, width: int, heads: int, layers: int, length: int, words: torch.Size) -> None:
        super().__init__()
        self.heads, self.width, self.length = heads, width, length
        self.read = nn.Linear(words[1], width)
        self.positions = nn.Embedding(length + 1, width)
        self.memory_norm = nn.LayerNorm(hidden)
        self.memory = nn.Linear(hidden, width)
        self.layers = nn.ModuleList(TextDecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, words[1])
        self.write_norm = nn.LayerNorm(words[1])
        self.bias = nn.Parameter(torch.zeros(words[0]))

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        words: Tensor,
        embeddings: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits of the next word at each position.

        ``tokens``: (B, T, d) from the backbone with bool ``mask`` (B, T); ``words``: int64 (B, N), the words so far, or
        those after ``past``; ``embeddings``: (V, d_text); ``past``: keys and values, each (layers, B, heads, earlier
        words, w / heads). Returns logits (B, N, V) and the keys and values with the new words' appended.
        """
        earlier = 0 if past is None else past[0].shape[3]
        x = self.read(F.embedding(words, embeddings))
        x = x + self.positions(torch.arange(words.shape[1], device=words.device) + earlier)
        memory = self.memory(self.memory_norm(tokens))  # (B, T, w)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            x, key, value = layer(x, memory, mask, None if past is None else (past[0][index], past[1][index]))
            keys.append(key)
            values.append(value)
        written = self.write_norm(F.gelu(self.write(self.norm(x))))
        logits = F.linear(written, embeddings.to(written.dtype)) + self.bias
        return logits, (torch.stack(keys), torch.stack(values))


class TextDecoderLayer(nn.Module):
    """Pre-norm self-attention with a cache, cross-attention, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.inner_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_in = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_query = nn.Linear(width, width)
        self.cross_in = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, memory: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, w), memory (B, T, w), mask (B, T); returns x, keys and values (B, heads, earlier + N, w / heads)."""
        query, key, value = (self._split(y) for y in self.self_in(self.self_norm(x)).chunk(3, dim=-1))
        if past is not None:  # words come one at a time then, and each sees all before it
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.self_out(_join(attended))
        memory_key, memory_value = (self._split(y) for y in self.cross_in(memory).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(
            self._split(self.cross_query(self.cross_norm(x))), memory_key, memory_value, mask[:, None, None]
        )
        x = x + self.cross_out(_join(attended))
        return x + self.outer(F.gelu(self.inner(self.inner_norm(x)))), key, value

    def _split(self, y: Tensor) -> Tensor:  # (B, N, w) to (B, heads, N, w / heads)
        split: Tensor = y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


def _join(y: Tensor) -> Tensor:  # (B, heads, N, w / heads) to (B, N, w)
    return y.transpose(1, 2).flatten(2)
