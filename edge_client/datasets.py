"""Users' data to examples: the rows of tables, read as one of the federation's tasks and split by source item.

It knows tasks, classes and how train and test are kept apart (docs/method.md section 8, trap 5). It does not know file
formats (`tables`) nor batches. Everything that can be wrong with the data is found here, before training, and said in
one line; only damage inside an image whose header is sound shows later, when the image is drawn.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from edge_client.config import ClientConfig, Columns, TaskDataConfig
from edge_client.tables import FOLDER_CLASS, FOLDER_IMAGE, FolderTable, Table, forget_unpacked, open_dataset, open_table
from tap_core.errors import UsageError
from tap_core.examples import Example, TaskData
from tap_core.names import TaskName
from tap_core.seeds import derive_seed
from tap_core.settings.federation import FederationConfig, TaskConfig
from tap_core.tasks import task_kind

CACHE_DIRECTORY = "datasets"
"""Below the device's state directory: unpacked Parquet, private as everything there, and gone when its file changes."""


class Examples(Sequence[Example]):
    """Some rows of a table as examples of one task; images are decoded when an example is taken."""

    def __init__(self, task: TaskConfig, table: Table, columns: Columns, targets: Sequence[Any], rows: Sequence[int]):
        self.table = table
        self._task, self._columns, self._targets, self._rows = task, columns, targets, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Examples": ...
    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return self.subset(self._rows[index])
        row = self._rows[index]
        image = self.table.image(row, self._columns.image) if "image" in self._task.inputs else None
        text = self.table.text(row, self._columns.text) if "text" in self._task.inputs else None
        target: Any
        if task_kind(self._task.kind).target != "image":
            target = self._targets[row]
        elif self._columns.target is not None:
            target = self.table.image(row, self._columns.target)
        else:
            assert image is not None
            target = image
        return Example(image, text, target)

    @property
    def targets(self) -> list[Any]:
        """The target of each example; no image is decoded but where targets are images."""
        if self._targets:
            return [self._targets[row] for row in self._rows]
        return [self[index].target for index in range(len(self))]

    def subset(self, rows: Sequence[int]) -> "Examples":
        return Examples(self._task, self.table, self._columns, self._targets, rows)

    def pick(self, places: Sequence[int]) -> "Examples":
        """The examples at these places."""
        return self.subset([self._rows[place] for place in places])

    def sources(self, column: str | None) -> list[tuple[str, ...]]:
        """What each example comes from: the cell of ``column``, else the image, else the text; where an image is drawn
        from a text, both. Examples that have one of these in common are of one source item."""
        if column is not None:
            self.table.require(column, f"tasks.{self._task.name}.item")
            return [(self.table.text(row, column),) for row in self._rows]
        return [self._contents(row) for row in self._rows]

    def _contents(self, row: int) -> tuple[str, ...]:
        if "image" in self._task.inputs:
            return (self.table.image_digest(row, self._columns.image),)
        text = hashlib.sha256(self.table.text(row, self._columns.text).strip().encode()).hexdigest()
        if not self._targets and self._columns.target is not None:
            return (self.table.image_digest(row, self._columns.target), f"text {text}")
        return (text,)

    def where(self, index: int) -> str:
        return self.table.where(self._rows[index])


def load_tasks(config: ClientConfig, federation: FederationConfig) -> dict[TaskName, TaskData]:
    """The device's examples by task, for all tasks of `client.toml`. Raises UsageError as `load_task` does."""
    cache = config.state_dir / CACHE_DIRECTORY
    tasks = federation.tasks_named(config.tasks)
    data = {
        task.name: load_task(
            task,
            config.tasks[task.name],
            seed=federation.seed,
            cache=cache,
            cut_decision_set=federation.cuts_decision_set,
        )
        for task in tasks
    }
    parts = [part for task in data.values() for part in (task.train, task.test)]
    forget_unpacked(cache, keep={part.table.unpacked for part in parts if isinstance(part, Examples)})
    return data


def load_task(
    task: TaskConfig, source: TaskDataConfig, *, seed: int, cache: Path, cut_decision_set: bool = False
) -> TaskData:
    """The examples of one task, train and test disjoint by source item.

    With ``cut_decision_set`` an eighth of the training examples, 32 to 256 but with fewer than 64 half of them, becomes
    the decision set, by source item too (docs/method.md section 9).

    Without a test split, items whose hash with ``seed`` falls below ``test_fraction`` become the test split: the same
    items in every run, for every task of the federation that shares them, and after more data has been added. Raises
    UsageError for anything in the data that cannot be used.
    """
    whole = _read(task, source, _open(source, source.train, source.train_split, cache))
    sources = whole.sources(source.item)
    items = source_items(sources)
    if source.test is not None or source.test_split is not None:
        train, test = whole, _read(task, source, _open(source, source.test, source.test_split, cache))
        require_disjoint(task.name, train, sources, test, test.sources(source.item))
    else:
        held_out = {item for item in set(items) if _falls_into_test(seed, item, source.test_fraction)}
        kept = [row for row, item in enumerate(items) if item not in held_out]
        cut = [row for row, item in enumerate(items) if item in held_out]
        train, test = whole.subset(kept), whole.subset(cut)
        require_disjoint(task.name, train, [sources[row] for row in kept], test, [sources[row] for row in cut])
        items = [items[row] for row in kept]
    if not len(train):
        raise UsageError(
            f"task {task.name!r}: cutting off the test split left no training example; lower test_fraction or add data"
        )
    if not cut_decision_set:
        return TaskData(train, test)
    chosen = _decision_items(seed, items)
    decision = [index for index, item in enumerate(items) if item in chosen]
    trained = [index for index, item in enumerate(items) if item not in chosen]
    if not trained or not decision:
        raise UsageError(
            f"task {task.name!r}: the federation's settings cut a decision set off the training split, which has too "
            f"few source items for that ({len(set(items))}); add data, or ask the operator for settings that need none"
        )
    return TaskData(train.pick(trained), test, train.pick(decision))


def _decision_items(seed: int, items: Sequence[str]) -> set[str]:
    """Source items whose examples are the decision set: in an order that a hash with ``seed`` gives, without those that
    would make it too large; where each of them would, the smallest alone, if it is no more than half."""
    wanted = min(max(len(items) // 8, 32), 256, len(items) // 2)
    counts = Counter(items)
    chosen: set[str] = set()
    taken = 0
    for item in sorted(counts, key=lambda item: derive_seed(seed, "decision set", item)):
        if taken + counts[item] <= wanted:
            chosen.add(item)
            taken += counts[item]
    smallest = min(counts, key=lambda item: (counts[item], item))
    return chosen or ({smallest} if counts[smallest] <= len(items) // 2 else chosen)


def count_tasks(data: Mapping[TaskName, TaskData]) -> dict[TaskName, int]:
    """n_{i,o}: the number of training examples by task."""
    return {name: len(task.train) for name, task in sorted(data.items())}


def source_items(sources: Sequence[tuple[str, ...]]) -> list[str]:
    """The source item of each example, from `Examples.sources`: the least source of all examples that hang together by
    common ones. An image's is less than any text's, so that tasks on the same images name their items alike."""
    above: dict[str, str] = {}

    def least(source: str) -> str:
        while (higher := above.setdefault(source, source)) != source:
            above[source] = above[higher]
            source = higher
        return source

    for of_example in sources:
        ends = {least(source) for source in of_example}
        above.update(dict.fromkeys(ends, min(ends)))
    return [least(of_example[0]) for of_example in sources]


def require_disjoint(
    task: str,
    train: Examples,
    train_sources: Sequence[tuple[str, ...]],
    test: Examples,
    test_sources: Sequence[tuple[str, ...]],
) -> None:
    """Raise UsageError, naming one shared item, if an item is on both sides (docs/method.md section 8, trap 5)."""
    seen = {source: index for index, sources in reversed(list(enumerate(train_sources))) for source in sources}
    shared = [index for index, sources in enumerate(test_sources) if not seen.keys().isdisjoint(sources)]
    if shared:
        in_test = shared[0]
        in_train = min(seen[source] for source in test_sources[in_test] if source in seen)
        raise UsageError(
            f"task {task!r}: train and test share {len({test_sources[i] for i in shared})} source items, for example "
            f"{train.where(in_train)} and {test.where(in_test)}; remove them from one of the two"
        )


def _open(source: TaskDataConfig, path: Path | None, split: str | None, cache: Path) -> Table:
    if source.dataset is not None:
        assert split is not None
        return open_dataset(source.dataset, split, cache)
    assert path is not None
    return open_table(path, cache)


def _falls_into_test(seed: int, item: str, fraction: float) -> bool:
    return derive_seed(seed, "test split", item) < fraction * 2**63


def _read(task: TaskConfig, source: TaskDataConfig, table: Table) -> Examples:
    """All rows of a table as examples of a task, each row checked."""
    columns = _columns(task, source, table)
    if not len(table):
        what = "no image in it" if isinstance(table, FolderTable) else "no row in it"
        raise UsageError(f"{table.source} is empty ({what}); task {task.name!r} needs at least one example")
    rows = range(len(table))
    if "image" in task.inputs:
        _check_images(table, columns.image, rows)
    if "text" in task.inputs:
        for row in rows:
            table.text(row, columns.text)
    targets: list[Any] = []
    if task_kind(task.kind).target != "image":
        assert columns.target is not None
        targets.extend(_target(task, table, row, columns.target) for row in rows)
    elif columns.target is not None:
        _check_images(table, columns.target, rows)
    return Examples(task, table, columns, targets, rows)


def _columns(task: TaskConfig, source: TaskDataConfig, table: Table) -> Columns:
    """The column of each role that the task has; all are columns of the table."""
    kind = task_kind(task.kind)
    if isinstance(table, FolderTable):
        if not kind.folder or tuple(task.inputs) != ("image",):
            raise UsageError(
                f"{table.source}: an image folder gives images and classes only, and task {task.name!r} is "
                f"{task.kind} from {' and '.join(task.inputs)}; give a .csv, .jsonl or .parquet file"
            )
        return Columns(image=FOLDER_IMAGE, target=FOLDER_CLASS if task.classes else None)
    columns = source.columns
    reconstructs = kind.target == "image" and "image" in task.inputs
    if columns.target is None and not reconstructs:
        columns = columns.model_copy(update={"target": "target"})
    for modality in task.inputs:
        table.require(getattr(columns, modality), f"tasks.{task.name}.columns.{modality}")
    if columns.target is not None:
        table.require(columns.target, f"tasks.{task.name}.columns.target")
    return columns


def _check_images(table: Table, column: str, rows: Iterable[int]) -> None:
    for row in rows:
        table.check_image(row, column)


def _target(task: TaskConfig, table: Table, row: int, column: str) -> Any:
    """The target of a row, as the task's kind reads it; a class is its index in the federation's order."""
    kind, cell = task_kind(task.kind), table.cell(row, column)
    if cell is None and isinstance(table, FolderTable):
        raise UsageError(f"{table.where(row)} is in no class; move it into a sub-folder named after its class")
    if not table.holds(row, column):
        raise UsageError(f"{table.where(row)} has no {column!r}; add it or remove the row")
    if not isinstance(cell, list):
        cell = "" if kind.may_be_empty and cell in (None, "") else table.text(row, column)
    try:
        return kind.parse(cell, task)
    except ValueError as error:
        raise UsageError(f"{table.where(row)}: {error}") from None
