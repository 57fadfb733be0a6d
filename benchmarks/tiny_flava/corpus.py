"""The demo's data as tensors and texts, for pretraining and for the probe.

Pretraining sees the train splits only, and of them no label: not an emoji's group, not a garment's label, not a
definition's category. The probe asks for those by name (`labels`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from tiny_flava.model import IMAGE_MEAN, IMAGE_SIZE, IMAGE_STD
from tiny_flava.vocabulary import PAD, SEP

DATA = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "data"


def rows(table: str, split: str, columns: list[str]) -> list[dict]:
    """The rows of one split of `data/{table}.parquet`, with only these columns."""
    read = pq.read_table(DATA / f"{table}.parquet", columns=[*columns, "split"])
    return [{c: row[c] for c in columns} for row in read.to_pylist() if row["split"] == split]


def labels(table: str, split: str, column: str) -> list[str]:
    """The labels of a split, in the order of `rows`. For the probe only."""
    return [row[column] for row in rows(table, split, [column])]


def images(table: str, split: str) -> Tensor:
    """(N, 3, 64, 64) uint8: RGB, resized bicubic."""
    return torch.from_numpy(np.stack([_decode(row["image"]) for row in rows(table, split, ["image"])]))


def _decode(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32, (x / 255 - mean) / std."""
    mean = torch.tensor(IMAGE_MEAN)[:, None, None]
    std = torch.tensor(IMAGE_STD)[:, None, None]
    return (pixels.float() / 255 - mean) / std


def text_pairs(split: str = "train") -> list[tuple[str, str]]:
    """(short text, long text): word and definition, concepts and sentence."""
    defined = [(row["word"], row["definition"]) for row in rows("definitions", split, ["word", "definition"])]
    spoken = [
        (" ".join(row["concepts"]), row["sentence"]) for row in rows("sentences", split, ["concepts", "sentence"])
    ]
    return defined + spoken


def captions(split: str = "train") -> list[tuple[str, list[str]]]:
    """(name, keywords) of each emoji, in the order of `images("emoji", split)`."""
    return [(row["name"], row["keywords"]) for row in rows("emoji", split, ["name", "keywords"])]


def vocabulary_texts() -> Iterator[str]:
    """Every text of the train splits; the few captions count threefold, so that the vocabulary knows their words."""
    for short, long in text_pairs():
        yield short
        yield long
    for name, keywords in 3 * captions():
        yield name
        yield ", ".join(keywords)


def tokenized(tokenizer: Tokenizer, texts: list[str], most: int) -> list[list[int]]:
    """Token ids of each text, cut to ``most`` with [SEP] kept at the end."""
    found = []
    for encoding in tokenizer.encode_batch(texts):
        ids = encoding.ids
        found.append(ids if len(ids) <= most else [*ids[: most - 1], SEP])
    return found


def padded(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Lists of ids -> (B, S) ids and (B, S) attention mask, both int64."""
    width = max(len(ids) for ids in batch)
    ids = torch.full((len(batch), width), PAD)
    for row, values in enumerate(batch):
        ids[row, : len(values)] = torch.tensor(values)
    return ids, (ids != PAD).long()


def index_batches(count: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of indices below ``count``: each epoch is a new permutation, its short rest dropped."""
    while True:
        order = generator.permutation(count)
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))


def bucketed_batches(lengths: np.ndarray, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """As `index_batches`, with texts of similar length together: 16 batches at a time are sorted by length."""
    for pool in index_batches(len(lengths), 16 * size, generator):
        in_order = pool[np.argsort(lengths[pool], kind="stable")].reshape(16, size)
        yield from in_order[generator.permutation(16)]
