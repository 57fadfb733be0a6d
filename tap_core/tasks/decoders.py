"""The task decoders: small heads on the backbone's tokens, trained in full (METHOD.md section 3, item 3).

They know shapes of tokens and outputs. They do not know where tokens come from, losses or parameter sets.
Shapes: B examples, T tokens, d hidden size, V vocabulary, w decoder width.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tap_core.settings.federation import ModelConfig, TaskConfig
from tap_core.tasks.batch import GENERATED_IMAGE_SIZE


def build_decoder(task: TaskConfig, config: ModelConfig, *, hidden: int, heads: int, embeddings: Tensor) -> nn.Module:
    """The decoder of a task. ``embeddings``: the frozen word embeddings (V, d_text), for their shape."""
    if task.kind == "image_generation":
        return ImageDecoder(hidden, config.image_decoder_width)
    if task.kind == "text_generation":
        width = min(config.text_decoder_width, hidden)
        while width % heads:
            heads -= 1
        return TextDecoder(hidden, width, heads, config.text_decoder_layers, task.length, embeddings.shape)
    return Classifier(hidden, len(task.classes))


def pool(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the tokens that are no padding: (B, T, d) and bool (B, T) to (B, d)."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


class Classifier(nn.Module):
    """Logits from the mean-pooled tokens: (B, T, d) to (B, classes)."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.outer(F.gelu(self.inner(self.norm(pool(tokens, mask)))))
        return logits


class ImageDecoder(nn.Module):
    """An image from the mean-pooled tokens: (B, T, d) to normalised pixels (B, 3, 64, 64)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.width, self.start = width, GENERATED_IMAGE_SIZE // 16
        self.norm = nn.LayerNorm(hidden)
        self.seed = nn.Linear(hidden, width * self.start**2)
        channels = [width, max(width // 2, 4), max(width // 4, 4), max(width // 8, 4), 3]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, kernel_size=4, stride=2, padding=1) for i, o in itertools.pairwise(channels)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.seed(self.norm(pool(tokens, mask))).unflatten(1, (self.width, self.start, self.start))
        for layer in self.up:  # the side doubles each time: 4, 8, 16, 32, 64
            x = layer(F.gelu(x))
        return x


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
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _join(y: Tensor) -> Tensor:  # (B, heads, N, w / heads) to (B, N, w)
    return y.transpose(1, 2).flatten(2)
