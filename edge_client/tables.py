"""Users' files as tables: image folders, CSV, JSON lines, Parquet and Hugging Face datasets behind one small interface.

A `Table` gives single cells and says where a row is, so that every complaint can name the file and the line. It knows
file formats and images; it does not know tasks, classes or splits. Images are opened when asked for and not before, so
memory holds their paths (files) or a memory map (Parquet), never the pixels.
"""

import csv
import hashlib
import io
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_client.images import ImageError, check_header, read_pixels
from tap_core.errors import UsageError, did_you_mean

FILE_FORMATS = ".csv, .jsonl or .parquet"
FOLDER_IMAGE = "image"
FOLDER_CLASS = "target"
"""The two columns of an image folder: the file and its sub-folder's name."""

T = TypeVar("T")

_UNPACKED = "parquet-"
_IGNORED_FILES = {"thumbs.db", "desktop.ini"}


class Table(ABC):
    """Rows and named columns of one source of data."""

    source: str
    """What the user calls it: a path or a dataset's name."""

    base: Path
    """Directory that image paths in cells are relative to."""

    columns: tuple[str, ...]

    unpacked: Path | None = None
    """Directory of the copy of the data that the table reads instead of the user's file, if it made one."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def cell(self, row: int, column: str) -> Any:
        """The value at ``row`` (from 0), or None where there is none."""

    @abstractmethod
    def where(self, row: int) -> str:
        """Source and row in the user's terms, for messages."""

    def holds(self, row: int, column: str) -> bool:
        """Whether the row has a cell of this column at all, be it an empty one."""
        return True

    def require(self, column: str, purpose: str) -> None:
        """Raise UsageError, naming the nearest column and listing all, unless ``column`` exists."""
        if column not in self.columns:
            hint = f"{did_you_mean(column, self.columns)} its columns are {', '.join(self.columns)}".lstrip()
            raise UsageError(f"{self.source} has no column {column!r} ({purpose}); {hint}")

    def text(self, row: int, column: str) -> str:
        """The cell as a non-empty string; numbers are written out. Raises UsageError for anything else."""
        value = self.cell(row, column)
        if isinstance(value, (bool, int, float)):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            problem = (
                "is empty" if value is None or isinstance(value, str) else f"is no text but {type(value).__name__}"
            )
            raise UsageError(f"{self.where(row)}: {column!r} {problem}; fill it in or remove the row")
        return value

    def image(self, row: int, column: str) -> np.ndarray:
        """The cell's image decoded: uint8 (height, width, 3). Raises UsageError naming file or row if it is none."""
        return self._with_image(row, column, read_pixels)

    def check_image(self, row: int, column: str) -> None:
        """As `image` for the header only."""
        self._with_image(row, column, check_header)

    def image_digest(self, row: int, column: str) -> str:
        """sha256 of the encoded image, so that copies of it are recognised whatever they are called."""
        return self._with_image(
            row,
            column,
            lambda file: hashlib.sha256(file.read_bytes() if isinstance(file, Path) else file.getvalue()).hexdigest(),
        )

    def _with_image(self, row: int, column: str, use: Callable[[Path | io.BytesIO], T]) -> T:
        file = self._image_file(row, column)
        try:
            return use(file)
        except (ImageError, OSError) as error:
            why = error if isinstance(error, ImageError) else f"cannot be read: {error.strerror}"
            raise UsageError(f"{self._image_name(row, column)} {why}, or remove the row") from None

    def _image_name(self, row: int, column: str) -> str:
        file = self._image_file(row, column)
        return f"{file} ({self.where(row)})" if isinstance(file, Path) else f"{self.where(row)}: {column!r}"

    def _image_file(self, row: int, column: str) -> Path | io.BytesIO:
        value = self.cell(row, column)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if isinstance(value, str) and value:
            return self.base / value
        kind = "nothing" if value in (None, "") else type(value).__name__
        raise UsageError(
            f"{self.where(row)}: {column!r} holds {kind} where an image (a path or PNG/JPEG bytes) belongs"
        )


class FolderTable(Table):
    """An image folder: every file below it is an image, and a file's first sub-folder is its class."""

    def __init__(self, path: Path):
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.name.lower() not in _IGNORED_FILES
        )
        self.source, self.base, self.columns = str(path), path, (FOLDER_IMAGE, FOLDER_CLASS)
        self._files = [file.relative_to(path) for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def cell(self, row: int, column: str) -> Any:
        file = self._files[row]
        if column == FOLDER_IMAGE:
            return str(file)
        return file.parts[0] if len(file.parts) > 1 else None

    def where(self, row: int) -> str:
        return str(self.base / self._files[row])

    def _image_name(self, row: int, column: str) -> str:
        return self.where(row)


class RowTable(Table):
    """Rows read into memory as dictionaries, each with its line number: CSV and JSON lines."""

    def __init__(self, path: Path, columns: Sequence[str], rows: list[dict[str, Any]], lines: list[int]):
        self.source, self.base, self.columns = str(path), path.parent, tuple(columns)
        self._rows, self._lines = rows, lines

    def __len__(self) -> int:
        return len(self._rows)

    def cell(self, row: int, column: str) -> Any:
        return self._rows[row].get(column)

    def holds(self, row: int, column: str) -> bool:
        return column in self._rows[row]

    def where(self, row: int) -> str:
        return f"{self.source} line {self._lines[row]}"


class ArrowTable(Table):
    """A memory-mapped Arrow table of the `datasets` library: Parquet files and Hugging Face datasets."""

    def __init__(self, source: str, base: Path, dataset: Any):
        from datasets import Image as ImageFeature
        from datasets import Value

        for name, feature in dict(dataset.features).items():
            if isinstance(feature, ImageFeature):
                dataset = dataset.cast_column(name, ImageFeature(decode=False))
        self.source, self.base, self.columns = source, base, tuple(dataset.column_names)
        self._dataset = dataset
        self._mapped = {name: dataset.select_columns([name]) for name in self.columns}
        self._small = {n for n, f in dataset.features.items() if isinstance(f, Value) and "binary" not in f.dtype}
        self._names = {n: names for n, f in dataset.features.items() if (names := _class_names(f)) is not None}
        self._loaded: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def cell(self, row: int, column: str) -> Any:
        if column in self._small or column in self._names:
            if column not in self._loaded:
                self._loaded[column] = list(self._dataset[column])
            value = self._loaded[column][row]
        else:
            value = self._mapped[column][row][column]
        return _named(value, self._names[column]) if column in self._names else value

    def where(self, row: int) -> str:
        return f"{self.source} row {row + 1}"


def _class_names(feature: Any) -> list[str] | None:
    """The names that the numbers of a column stand for: of a ClassLabel, or of a list of them."""
    from datasets import ClassLabel

    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return inner.names if isinstance(inner, ClassLabel) else None


def _named(value: Any, names: list[str]) -> Any:
    """The name of a number, or of each in a list; None for a number that has none, as -1 for "not labelled"."""
    if isinstance(value, list):
        return [_named(number, names) for number in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def open_table(path: Path, cache_directory: Path) -> Table:
    """The table of a folder or file. Parquet is unpacked into ``cache_directory`` once, to be memory-mapped.

    Raises UsageError if the path is missing, of another format, or not what its name says.
    """
    if path.is_dir():
        return FolderTable(path)
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or folder; give the path of an image folder or of a {FILE_FORMATS} file"
        )
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_parquet(path, cache_directory)
    try:
        if suffix == ".csv":
            return _open_csv(path)
        if suffix in (".jsonl", ".ndjson"):
            return _open_json_lines(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    hint = "; write one JSON object per line and name it .jsonl" if suffix == ".json" else ""
    raise UsageError(f"{path}: a file of data must be {FILE_FORMATS}{hint}")


def _open_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if not header:
                raise UsageError(f"{path} is empty; its first line must name the columns")
            if len(set(header)) != len(header):
                raise UsageError(f"{path} names a column twice in its first line; give every column its own name")
            rows, lines = [], []
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise UsageError(
                        f"{path} line {reader.line_num} has {len(values)} cells and the header {len(header)}; "
                        'put cells that hold commas in "quotes"'
                    )
                rows.append(dict(zip(header, values, strict=True)))
                lines.append(reader.line_num)
        except csv.Error as error:
            raise UsageError(f"{path} line {reader.line_num} is not valid CSV ({error}); correct the line") from None
    return RowTable(path, header, rows, lines)


def _open_json_lines(path: Path) -> Table:
    rows, lines = [], []
    columns: dict[str, None] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = error.msg if isinstance(error, json.JSONDecodeError) else "a number too long, or too deep a nest"
                raise UsageError(f"{path} line {number} is not valid JSON ({why}); correct the line") from None
            if not isinstance(row, dict):
                raise UsageError(f"{path} line {number} is not a JSON object; write one {{...}} per line")
            columns.update(dict.fromkeys(row))
            rows.append(row)
            lines.append(number)
    return RowTable(path, tuple(columns), rows, lines)


def _open_parquet(path: Path, cache_directory: Path) -> Table:
    import datasets
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        ParquetFile(path).close()
    except (ArrowException, OSError):
        raise UsageError(f"{path} is not a readable Parquet file; write it again or correct the path") from None
    datasets.disable_progress_bars()
    unpacked = cache_directory / f"{_UNPACKED}{_file_digest(path)[:32]}"
    table = ArrowTable(str(path), path.parent, datasets.Dataset.from_parquet(str(path), cache_dir=str(unpacked)))
    table.unpacked = unpacked
    return table


def forget_unpacked(cache_directory: Path, keep: set[Path | None]) -> None:
    """Remove unpacked copies of files that have changed or are used no more: deleted data must not live on there."""
    for path in cache_directory.glob(f"{_UNPACKED}*"):
        if path not in keep:
            shutil.rmtree(path)


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_dataset(name: str, split: str, cache_directory: Path) -> Table:
    """The table of one split of a Hugging Face dataset: a saved directory, a directory of files, or a hub id.

    Raises UsageError if it cannot be found or has no such split.
    """
    import datasets

    datasets.disable_progress_bars()
    directory = Path(name)
    if directory.is_absolute() and not directory.is_dir():
        raise UsageError(f"{name}: no such dataset directory; give a directory or a hub id")
    saved = any((directory / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, cache_dir=str(cache_directory))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot load dataset {name!r}: {first_line}") from None
    if isinstance(found, datasets.Dataset):
        found = {"train": found}
    if split not in found:
        raise UsageError(f"dataset {name!r} has no split {split!r}; its splits are {', '.join(sorted(found))}")
    return ArrowTable(f"{name} ({split})", directory, found[split])
