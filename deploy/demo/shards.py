"""The demo's five data shards, cut from deploy/demo/data: which device has which task, on which files.

Deterministic: the same files for the same data. It writes every format that a device reads (image folder, CSV, JSON
lines, Parquet) and knows the tasks of the demo's federation; it does not know devices' settings beyond their data.
Train and test come from the tables' `split`, so they share no source item, and the two devices that share a task share
no example.
"""

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

DATA = Path(__file__).resolve().parent / "data"
TRAIN_ROWS = 2000
TEST_ROWS = 200
SEED = 20260
FASHION_LABELS = MappingProxyType({"T-shirt/top": "t-shirt or top"})
"""Labels that cannot name a folder, and the class names used instead; the others are put in lower case."""


@dataclass(frozen=True)
class DeviceTask:
    """One task of one device: its files, the column of the source item, and the columns of the task's roles."""

    task: str
    train: Path
    test: Path
    item: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def toml(self, relative_to: Path) -> str:
        """The [tasks.NAME] table of a client.toml that lies in ``relative_to``."""
        lines = [f"[tasks.{self.task}]"]
        lines += [f"{key} = {_quoted(_relative(getattr(self, key), relative_to))}" for key in ("train", "test")]
        if self.item is not None:
            lines.append(f"item = {_quoted(self.item)}")
        if self.columns:
            lines.append(f"columns = {{ {', '.join(f'{k} = {_quoted(v)}' for k, v in self.columns.items())} }}")
        return "\n".join(lines) + "\n"


def write_shards(directory: Path) -> dict[str, tuple[DeviceTask, ...]]:
    """Write every device's files below ``directory`` and return its tasks, by device."""
    fashion = {split: _read("fashion", split, ["image", "label"]) for split in ("train", "test")}
    emoji = {split: _read("emoji", split, ["image", "name", "group", "keywords"]) for split in ("train", "test")}
    defined = {split: _read("definitions", split, ["synset", "category", "definition"]) for split in ("train", "test")}
    spoken = {split: _read("sentences", split, ["synset", "concepts", "sentence"]) for split in ("train", "test")}
    defined, spoken = _without_repeats(defined, "definition"), _without_repeats(spoken, "sentence")
    first_half, second_half = slice(0, TRAIN_ROWS), slice(TRAIN_ROWS, 2 * TRAIN_ROWS)
    at = {name: directory / name for name in DEVICES}
    for folder in at.values():
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "fashion-classifier": (_fashion_label(at["fashion-classifier"], fashion, first_half),),
        "definition-classifier": (_definition_category(at["definition-classifier"], defined, 0),),
        "emoji-narrator": (
            _emoji_caption(at["emoji-narrator"], emoji),
            _emoji_question(at["emoji-narrator"], emoji),
        ),
        "fashion-artist": (
            _fashion_reconstruction(at["fashion-artist"], fashion, second_half),
            _concept_sentence(at["fashion-artist"], spoken),
        ),
        "emoji-librarian": (
            _emoji_group(at["emoji-librarian"], emoji),
            _definition_category(at["emoji-librarian"], defined, 1),
        ),
    }


DEVICES = ("fashion-classifier", "definition-classifier", "emoji-narrator", "fashion-artist", "emoji-librarian")

Splits = dict[str, list[dict[str, Any]]]


def _fashion_label(directory: Path, fashion: Splits, rows: slice) -> DeviceTask:
    """Image folders: one sub-folder per class."""
    paths = {}
    for split in ("train", "test"):
        paths[split] = directory / f"fashion_label_{split}"
        for row in fashion[split][rows] if split == "train" else fashion[split][:TEST_ROWS]:
            folder = paths[split] / FASHION_LABELS.get(row["label"], row["label"].lower())
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{_digest(row['image'])[:16]}.png").write_bytes(row["image"])
    return DeviceTask("fashion_label", paths["train"], paths["test"])


def _fashion_reconstruction(directory: Path, fashion: Splits, rows: slice) -> DeviceTask:
    """Parquet; the input is the target. Other images than those of fashion_label."""
    chosen = {"train": fashion["train"][rows], "test": fashion["test"][TEST_ROWS : 2 * TEST_ROWS]}
    tables = {
        split: [{"item": _digest(row["image"]), "image": row["image"]} for row in found]
        for split, found in chosen.items()
    }
    return _parquet(directory, "fashion_reconstruction", tables, {"image": "image"})


def _emoji_group(directory: Path, emoji: Splits) -> DeviceTask:
    tables = {
        split: [{"item": row["name"], "image": row["image"], "group": row["group"]} for row in found]
        for split, found in emoji.items()
    }
    return _parquet(directory, "emoji_group", _capped(tables), {"image": "image", "target": "group"})


def _emoji_caption(directory: Path, emoji: Splits) -> DeviceTask:
    tables = {
        split: [{"item": row["name"], "image": row["image"], "caption": row["name"]} for row in found]
        for split, found in emoji.items()
    }
    return _parquet(directory, "emoji_caption", _capped(tables), {"image": "image", "target": "caption"})


def _emoji_question(directory: Path, emoji: Splits) -> DeviceTask:
    tables = {}
    for split, found in emoji.items():
        draw = random.Random(f"{SEED}/{split}")
        asked = [
            {"item": row["name"], "image": row["image"], "question": question, "answer": answer}
            for row in found
            for question, answer in questions(row, found, draw)
        ]
        draw.shuffle(asked)
        tables[split] = asked
    columns = {"image": "image", "text": "question", "target": "answer"}
    return _parquet(directory, "emoji_question", _capped(tables), columns)


def questions(
    emoji: Mapping[str, Any], others: Sequence[Mapping[str, Any]], draw: random.Random
) -> list[tuple[str, str]]:
    """Two questions about an emoji and their answers: its group or its name, and a keyword that it has or has not.

    ``others`` are the emoji of the same split: a keyword that it has not comes from them, so nothing of the test split
    is told in the train split.
    """
    if draw.random() < 0.75:
        wording = draw.choice(("which group is this in?", "what kind of emoji is this?"))
        asked = [(wording, emoji["group"])]
    else:
        asked = [("what is the name of this?", emoji["name"])]
    has = draw.random() < 0.5
    keywords = emoji["keywords"] if has else _foreign_keywords(emoji, others, draw)
    if keywords:
        asked.append((f"is this about {draw.choice(keywords)}?", "yes" if has else "no"))
    return asked


def _foreign_keywords(emoji: Mapping[str, Any], others: Sequence[Mapping[str, Any]], draw: random.Random) -> list[str]:
    own = set(emoji["keywords"])
    return [keyword for keyword in draw.choice(others)["keywords"] if keyword not in own]


def _definition_category(directory: Path, defined: Splits, share: int) -> DeviceTask:
    """CSV; ``share`` 0 and 1 are disjoint, in train and in test."""
    paths = {}
    for split, most in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        paths[split] = directory / f"definition_category_{split}.csv"
        with paths[split].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("synset", "definition", "category"))
            for row in defined[split][share * most : (share + 1) * most]:
                writer.writerow((row["synset"], row["definition"], row["category"]))
    columns = {"text": "definition", "target": "category"}
    return DeviceTask("definition_category", paths["train"], paths["test"], "synset", columns)


def _concept_sentence(directory: Path, spoken: Splits) -> DeviceTask:
    """JSON lines."""
    paths = {}
    for split, found in _capped(spoken).items():
        paths[split] = directory / f"concept_sentence_{split}.jsonl"
        with paths[split].open("w", encoding="utf-8", newline="") as file:
            for row in found:
                entry = {**row, "concepts": ", ".join(row["concepts"])}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    columns = {"text": "concepts", "target": "sentence"}
    return DeviceTask("concept_sentence", paths["train"], paths["test"], "synset", columns)


def _read(table: str, split: str, columns: list[str]) -> list[dict[str, Any]]:
    """One split of a table in a fixed random order, so that any part of it is a fair sample."""
    import pyarrow.parquet as parquet

    read = parquet.read_table(DATA / f"{table}.parquet", columns=[*columns, "split"]).to_pylist()
    rows = [{column: row[column] for column in columns} for row in read if row["split"] == split]
    random.Random(f"{SEED}/{table}/{split}").shuffle(rows)
    return rows


def _without_repeats(tables: Splits, column: str) -> Splits:
    """Without test rows whose text the train split holds too: a few synsets are described in the same words."""
    trained = {row[column] for row in tables["train"]}
    return {"train": tables["train"], "test": [row for row in tables["test"] if row[column] not in trained]}


def _capped(tables: Splits) -> Splits:
    most = {"train": TRAIN_ROWS, "test": TEST_ROWS}
    return {split: rows[: most[split]] for split, rows in tables.items()}


def _parquet(directory: Path, task: str, tables: Splits, columns: Mapping[str, str]) -> DeviceTask:
    import pyarrow
    import pyarrow.parquet as parquet

    paths = {}
    for split, rows in tables.items():
        paths[split] = directory / f"{task}_{split}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), paths[split])
    return DeviceTask(task, paths["train"], paths["test"], "item", columns)


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _quoted(value: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return json.dumps(value, ensure_ascii=False)


def toml_of(tasks: Iterable[DeviceTask], relative_to: Path) -> str:
    """The [tasks.*] tables of a device's client.toml."""
    return "\n".join(task.toml(relative_to) for task in tasks)
