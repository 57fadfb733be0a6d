"""Images, texts and targets to the tensors that a foundation expects, and back.

It knows the foundation's image size, normalisation and tokenizer. It does not know users' files (a device's business)
nor the model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from tap_core.examples import Example, targets_of
from tap_core.foundations.base import Foundation
from tap_core.settings.federation import TaskConfig
from tap_core.tasks import task_kind
from tap_core.tasks.base import Facts
from tap_core.tasks.batch import TaskBatch


class Preprocessor:
    """Images and texts to the tensors that a foundation expects, and back."""

    def __init__(self, foundation: Foundation, *, text_length: int) -> None:
        self.image_size = foundation.image_size
        self.mean = np.asarray(foundation.mean, np.float32).reshape(3, 1, 1)
        self.std = np.asarray(foundation.std, np.float32).reshape(3, 1, 1)
        self.tokenizer = foundation.tokenizer
        self.special = foundation.special
        self.text_length = min(text_length, foundation.text_positions)
        self.facts: dict[str, Facts] = {}
        """By task, what its kind learnt from the device's train split."""

    def fit(self, task: TaskConfig, train: Sequence[Example]) -> None:
        """Learn what a task's kind needs to know of the train split, such as the mean and spread of numbers."""
        kind = task_kind(task.kind)
        if kind.target != "image":
            self.facts[task.name] = kind.fit(task, targets_of(train))

    def image(self, pixels: np.ndarray, size: int | None = None) -> np.ndarray:
        """uint8 (height, width, 3) to normalised float32 (3, size, size); bicubic where the size differs."""
        size = self.image_size if size is None else size
        if pixels.shape[:2] != (size, size):
            pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
        return (pixels.astype(np.float32).transpose(2, 0, 1) / 255.0 - self.mean) / self.std

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Normalised float (3, height, width) back to uint8 (height, width, 3).

        Clipped and rounded before the cast, so that values out of range do not wrap round (docs/method.md section 8,
        trap 6).
        """
        restored = (image.astype(np.float32) * self.std + self.mean) * 255.0
        pixels: np.ndarray = np.clip(np.rint(restored), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return pixels

    def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask, int64 (batch, longest); special tokens added, cut to ``text_length``."""
        encoded = [self.tokenizer.encode(text).ids for text in texts]
        cut = [ids if len(ids) <= self.text_length else [*ids[: self.text_length - 1], ids[-1]] for ids in encoded]
        padded = _pad(cut, self.special.pad)
        lengths = np.array([len(ids) for ids in cut])[:, None]
        return padded, (np.arange(padded.shape[1])[None] < lengths).astype(np.int64)

    def answers(self, texts: Sequence[str], length: int, padding: int) -> np.ndarray:
        """Start token, at most ``length`` tokens of which the last is the end token, then ``padding``."""
        rows = []
        for text in texts:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: length - 1]
            rows.append([self.special.start, *ids, self.special.end])
        return _pad(rows, padding)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=True)
        return text

    def batch(self, task: TaskConfig, examples: Sequence[Example]) -> TaskBatch:
        """The tensors of ``examples``, on the CPU."""
        image = ids = mask = None
        if "image" in task.inputs:
            images = [e.image for e in examples if e.image is not None]
            image = torch.from_numpy(np.stack([self.image(pixels) for pixels in images]))
        if "text" in task.inputs:
            texts = [e.text for e in examples if e.text is not None]
            ids, mask = (torch.from_numpy(array) for array in self.texts(texts))
        target = task_kind(task.kind).encode(task, examples, self, self.facts.get(task.name, {}))
        return TaskBatch(task, image, ids, mask, torch.from_numpy(target))


def _pad(rows: Sequence[Sequence[int]], value: int) -> np.ndarray:
    padded = np.full((len(rows), max(len(row) for row in rows)), value, np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
