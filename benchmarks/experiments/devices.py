"""The devices of an experiment and their data: patterns of tasks, few or many examples, and labels spread unevenly.

Each device draws its own distribution over the strata of a task (classes, or an emoji's group) from a Dirichlet and is
tested on that distribution. No training example is on two devices; training, decision and test examples share no source
item. It knows the shipped tables; it does not know models or algorithms.
"""

import io
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet
from PIL import Image

from deploy.demo.shards import FASHION_LABELS, questions
from tap_core.examples import Example, TaskData
from tap_core.seeds import derive_seed
from tap_core.settings.federation import FederationConfig

TABLES = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "data"

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "image-classifier": ("fashion_label",),
    "text-classifier-a": ("definition_category",),
    "text-classifier-b": ("definition_category",),
    "image-generator": ("fashion_reconstruction",),
    "questioner-a": ("emoji_question",),
    "questioner-b": ("emoji_question",),
    "text-questioner": ("definition_question",),
    "classifier-of-both": ("definition_category", "fashion_label"),
    "writer-and-artist": ("concept_sentence", "fashion_reconstruction"),
    "captioner-and-artist": ("emoji_caption", "fashion_reconstruction"),
}
"""Tasks of each device of a group of ten (docs/method.md section 6)."""


@dataclass(frozen=True)
class Item:
    """A source item's example of a task, its stratum, and what tells its source item from others."""

    source: str
    stratum: str
    example: Example


@dataclass(frozen=True)
class Split:
    """How much data devices have and how it is spread. ``examples``: for training and deciding together, by task and
    device. ``alpha``: of the Dirichlet; None: as the table is. ``decision``: at most this many of them decide."""

    examples: int
    alpha: float | None
    test: int = 100
    groups: int = 1

    @property
    def decision(self) -> int:
        """An eighth, 32 to 256, never more than half (docs/method.md section 9)."""
        return min(max(self.examples // 8, 32), 256, self.examples // 2)


def devices(
    config: FederationConfig, split: Split, patterns: Mapping[str, Sequence[str]] = PATTERNS
) -> dict[str, dict[str, TaskData]]:
    """Data by task by device, drawn with the federation's seed."""
    pools: dict[str, tuple[Pool, Pool]] = {}
    found: dict[str, dict[str, TaskData]] = {}
    for group in range(split.groups):
        for pattern, tasks in patterns.items():
            device = f"{pattern}-{group + 1}" if split.groups > 1 else pattern
            found[device] = {}
            for task in sorted(tasks):
                if task not in pools:
                    train, test = items(config, task)
                    seed = derive_seed(config.seed, "pool", task)
                    pools[task] = Pool(train, seed), Pool(test, seed)
                found[device][task] = _draw(config, device, task, split, *pools[task])
    return found


class Pool:
    """The items of one split of a task by stratum, taken one after the other in a random order."""

    def __init__(self, items: Iterable[Item], seed: int):
        self._strata: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            self._strata[item.stratum].append(item)
        self.shares = {name: len(rows) for name, rows in sorted(self._strata.items())}
        for name in self.shares:
            random.Random(f"{seed}/{name}").shuffle(self._strata[name])

    def take(self, count: int, shares: Mapping[str, float], draw: np.random.Generator, *, keep: bool) -> list[Item]:
        """``count`` items, each of a stratum drawn by ``shares``; of an empty stratum none. With ``keep`` they stay, so
        that another device may be given them too. Raises ValueError if there are not enough."""
        left = {name: list(rows) if keep else rows for name, rows in self._strata.items()}
        taken: list[Item] = []
        while len(taken) < count:
            names = [name for name in self.shares if left[name]]
            weights = np.array([shares[name] for name in names], dtype=float) + 1e-12
            if not names:
                raise ValueError(f"{count} items were asked for and there are {len(taken)}")
            wanted = draw.multinomial(count - len(taken), weights / weights.sum())
            for name, number in zip(names, wanted, strict=True):
                taken += left[name][: int(number)]
                del left[name][: int(number)]
        return taken


def _draw(config: FederationConfig, device: str, task: str, split: Split, train: Pool, test: Pool) -> TaskData:
    draw = np.random.default_rng(derive_seed(config.seed, "devices", device, task))
    shares: dict[str, float] = {name: float(size) for name, size in train.shares.items()}
    if split.alpha is not None:
        drawn = draw.dirichlet([split.alpha] * len(shares))
        shares = dict(zip(shares, map(float, drawn), strict=True))
    mine = train.take(split.examples, shares, draw, keep=False)
    order = draw.permutation(len(mine))
    mine = [mine[place] for place in order]
    deciding = {item.source for item in mine[: split.decision]}
    tested = test.take(split.test, {name: shares.get(name, 0.0) for name in test.shares}, draw, keep=True)
    return TaskData(
        [item.example for item in mine if item.source not in deciding],
        [item.example for item in tested],
        [item.example for item in mine if item.source in deciding],
    )


def items(config: FederationConfig, task: str) -> tuple[list[Item], list[Item]]:
    """The train and the test items of a task."""
    classes = config.tasks[task].classes
    train, test = ([*_ITEMS[task](split, classes)] for split in ("train", "test"))
    known = {_words(item) for item in train}
    if known != {None}:  # a few synsets are described in the same words
        test = [item for item in test if _words(item) not in known]
    return train, test


def _words(item: Item) -> str | None:
    return item.example.text if item.example.image is None else None


def _fashion(split: str) -> Iterator[tuple[str, str, np.ndarray]]:
    for index, row in enumerate(_rows("fashion", split, ("image", "label"))):
        label = FASHION_LABELS.get(row["label"], row["label"].lower())
        yield f"{split} {index}", label, _pixels(row["image"])


def _fashion_label(split: str, classes: Sequence[str]) -> Iterator[Item]:
    for source, label, image in _fashion(split):
        yield Item(source, label, Example(image, None, classes.index(label)))


def _fashion_reconstruction(split: str, classes: Sequence[str]) -> Iterator[Item]:
    for source, label, image in _fashion(split):
        yield Item(source, label, Example(image, None, image))


def _definition_category(split: str, classes: Sequence[str]) -> Iterator[Item]:
    for row in _rows("definitions", split, ("synset", "category", "definition")):
        yield Item(row["synset"], row["category"], Example(None, row["definition"], classes.index(row["category"])))


def _definition_question(split: str, classes: Sequence[str]) -> Iterator[Item]:
    draw = random.Random(f"definition question/{split}")
    rows = _rows("definitions", split, ("synset", "category", "definition"))
    categories = sorted({row["category"] for row in rows})
    for row in rows:
        if draw.random() < 0.5:
            asked, answer = "what kind of thing is this", row["category"]
        else:
            named = row["category"] if draw.random() < 0.5 else draw.choice(categories)
            asked, answer = f"does this belong to {named}", "yes" if named == row["category"] else "no"
        yield Item(row["synset"], row["category"], Example(None, f"{asked}: {row['definition']}", answer))


def _emoji_question(split: str, classes: Sequence[str]) -> Iterator[Item]:
    draw = random.Random(f"emoji question/{split}")
    rows = _rows("emoji", split, ("image", "name", "group", "keywords"))
    for row in rows:
        for question, answer in questions(row, rows, draw):
            yield Item(row["name"], row["group"], Example(_pixels(row["image"]), question, answer))


def _emoji_caption(split: str, classes: Sequence[str]) -> Iterator[Item]:
    for row in _rows("emoji", split, ("image", "name", "group")):
        yield Item(row["name"], row["group"], Example(_pixels(row["image"]), None, row["name"]))


def _concept_sentence(split: str, classes: Sequence[str]) -> Iterator[Item]:
    for row in _rows("sentences", split, ("synset", "concepts", "sentence")):
        part_of_speech = row["synset"].rstrip("0123456789")
        yield Item(row["synset"], part_of_speech, Example(None, ", ".join(row["concepts"]), row["sentence"]))


_ITEMS = {
    "fashion_label": _fashion_label,
    "fashion_reconstruction": _fashion_reconstruction,
    "definition_category": _definition_category,
    "definition_question": _definition_question,
    "emoji_question": _emoji_question,
    "emoji_caption": _emoji_caption,
    "concept_sentence": _concept_sentence,
}


@cache
def _rows(table: str, split: str, columns: tuple[str, ...]) -> list[dict[str, object]]:
    read = pyarrow.parquet.read_table(TABLES / f"{table}.parquet", columns=[*columns, "split"]).to_pylist()
    return [{column: row[column] for column in columns} for row in read if row["split"] == split]


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
