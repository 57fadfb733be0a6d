"""How useful the frozen features are: logistic regression on mean-pooled tokens after both multimodal layers.

The probe is the only reader of the labels, and never part of pretraining. Floors: the majority class, and the same
regression on raw pixels or on a bag of word pieces.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import FlavaModel

from tiny_flava import corpus
from tiny_flava.model import image_features, text_features

PROBES = {"emoji_group": ("emoji", "group"), "fashion_label": ("fashion", "label")}
TEXT_PROBE = ("definition_category", "definitions", "category")
WEIGHT_DECAYS = (1e-4, 1e-3, 1e-2)
VALIDATION = 0.2


def features(model: FlavaModel, tokenizer: Tokenizer) -> dict[str, tuple[Tensor, Tensor]]:
    """Task -> features of the train and of the test split, (N, d) each."""
    model.eval()
    found = {}
    for task, (table, _) in PROBES.items():
        found[task] = tuple(_of_images(model, corpus.images(table, split)) for split in ("train", "test"))
    task, table, _ = TEXT_PROBE
    found[task] = tuple(_of_texts(model, tokenizer, _definitions(table, split)) for split in ("train", "test"))
    model.train()
    return found


def raw_features(tokenizer: Tokenizer) -> dict[str, tuple[Tensor, Tensor]]:
    """The same from no model at all: pixels at 16 x 16, and bags of word pieces."""
    found = {}
    for task, (table, _) in PROBES.items():
        found[task] = tuple(
            F.avg_pool2d(corpus.normalised(corpus.images(table, split)), 4).flatten(1) for split in ("train", "test")
        )
    task, table, _ = TEXT_PROBE
    found[task] = tuple(_bags(tokenizer, _definitions(table, split)) for split in ("train", "test"))
    return found


def accuracies(by_task: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Test accuracy of a logistic regression for each task."""
    return {task: round(_probe(*pair, *_targets(task)), 4) for task, pair in by_task.items()}


def majority() -> dict[str, float]:
    """Test accuracy of always answering the train split's most frequent class."""
    found = {}
    for task in (*PROBES, TEXT_PROBE[0]):
        train, test = _targets(task)
        frequent = Counter(train.tolist()).most_common(1)[0][0]
        found[task] = round(float((test == frequent).float().mean()), 4)
    return found


def _probe(train: Tensor, test: Tensor, train_target: Tensor, test_target: Tensor) -> float:
    """Standardise, choose the weight decay on a held-out part of the train split, fit on all of it, test once."""
    mean, std = train.mean(dim=0), train.std(dim=0).clamp(min=1e-4)
    train, test = (train - mean) / std, (test - mean) / std
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
    held = order[: int(VALIDATION * len(order))]
    fit = order[len(held) :]

    def held_out(decay: float) -> float:
        return _accuracy(_fit(train[fit], train_target[fit], decay), train[held], train_target[held])

    best = max(WEIGHT_DECAYS, key=held_out)
    return _accuracy(_fit(train, train_target, best), test, test_target)


def _fit(x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _accuracy(fitted: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> float:
    return float((F.linear(x, *fitted).argmax(dim=1) == y).float().mean())


def _targets(task: str) -> tuple[Tensor, Tensor]:
    table, column = PROBES[task] if task in PROBES else TEXT_PROBE[1:]
    train, test = (corpus.labels(table, split, column) for split in ("train", "test"))
    number = {name: i for i, name in enumerate(sorted(set(train) | set(test)))}
    return tuple(torch.tensor([number[name] for name in names]) for names in (train, test))  # type: ignore[return-value]


def _definitions(table: str, split: str) -> list[str]:
    return [row["definition"] for row in corpus.rows(table, split, ["definition"])]


def _of_images(model: FlavaModel, pixels: Tensor) -> Tensor:
    return torch.cat([image_features(model, corpus.normalised(part)) for part in pixels.split(256)])


def _of_texts(model: FlavaModel, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    ids = corpus.tokenized(tokenizer, texts, 64)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    parts = [order[start : start + 256] for start in range(0, len(order), 256)]
    found = torch.cat([text_features(model, *corpus.padded([ids[i] for i in part])) for part in parts])
    return found[torch.tensor(order).argsort()]


def _bags(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    found = torch.zeros(len(texts), tokenizer.get_vocab_size())
    for row, ids in enumerate(corpus.tokenized(tokenizer, texts, 64)):
        found[row, ids] = 1.0
    return found
