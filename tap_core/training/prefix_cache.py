"""What the encoders' untrained layers make of each example: computed once, kept in a mapped file.

With `lora.encoder_layers` the layers below the first adapter have one output for an example, whatever is trained: for
both parameter sets, in every round, in stage 2. It is computed for each example on its own, at its own length, so that
it has the same bits whatever batch the example is in, and whether it was kept or not.

The files have no name (nobody else can open them, and they are gone when the process ends): the cache is never stale,
because it never outlives the examples and the weights that it was made from. It knows encoders and examples' numbers.
It does not know training.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tap_core.components import Modality
from tap_core.model.tap_model import TapModel
from tap_core.names import TaskName
from tap_core.tasks.batch import TaskBatch

log = logging.getLogger(__name__)

MEGABYTE = 1 << 20


class PrefixCache:
    """One device's examples, by task and number; a number must stand for the same example for good."""

    def __init__(self, directory: Path | None = None, limit_mb: int = 0) -> None:
        """``directory``: where the files lie (the system's temporary one if None or not there). Of more than
        ``limit_mb`` megabytes nothing is kept: it is computed each time."""
        self._directory = directory if directory is not None and directory.is_dir() else None
        self._left = limit_mb * MEGABYTE
        self._kept: dict[tuple[TaskName, Modality], _Rows] = {}

    def complete(self, model: TapModel, batch: TaskBatch, examples: Sequence[int]) -> TaskBatch:
        """The batch with the prefixes of the task's inputs, if their encoders have untrained layers. ``examples``: the
        numbers of the batch's examples."""
        prefixes = {
            modality: self._prefixes(model, batch, modality, examples)
            for modality in batch.task.inputs
            if model.encoders[modality].frozen_blocks
        }
        return replace(batch, prefixes=prefixes) if prefixes else batch

    def _prefixes(self, model: TapModel, batch: TaskBatch, modality: Modality, examples: Sequence[int]) -> Tensor:
        """(batch, tokens, width), zero where a text is padded."""
        rows: list[Tensor] = []
        for position, number in enumerate(examples):
            kept = self._kept.get((batch.task.name, modality))
            row = None if kept is None else kept.get(number)
            if row is None:
                row = _compute(model, batch, modality, position)
                self._keep(model, batch.task.name, modality, number, row)
            rows.append(row)
        whole = rows[0].new_zeros(len(rows), max(len(row) for row in rows), rows[0].shape[1])
        for position, row in enumerate(rows):
            whole[position, : len(row)] = row
        return whole.to(batch.target.device)

    def _keep(self, model: TapModel, task: TaskName, modality: Modality, number: int, row: Tensor) -> None:
        longest = len(row) if modality == "image" else model.preprocessor.text_length
        if self._left < longest * row.shape[1] * 4:
            return
        kept = self._kept.setdefault((task, modality), _Rows(self._directory, longest, row.shape[1]))
        try:
            kept.put(number, row)
        except OSError as error:
            log.warning("the cache of encoder outputs cannot be written (%s); going on without it", error.strerror)
            self._left = 0
            return
        self._left -= longest * row.shape[1] * 4


class _Rows:
    """Arrays of at most (longest, width) values, float32, one after another in an unnamed file."""

    def __init__(self, directory: Path | None, longest: int, width: int) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (it lives as long as the cache)
        self._longest, self._width = longest, width
        self._place: dict[int, tuple[int, int]] = {}
        self._map: np.memmap | None = None

    def get(self, number: int) -> Tensor | None:
        """The rows of an example, (tokens, width), or None."""
        if number not in self._place:
            return None
        index, length = self._place[number]
        if self._map is None or index >= len(self._map):
            shape = (len(self._place), self._longest, self._width)
            self._map = np.memmap(self._file, np.float32, "r+", shape=shape)
        return torch.from_numpy(self._map[index, :length])

    def put(self, number: int, row: Tensor) -> None:
        """Raises OSError if the disk is full."""
        index, values = len(self._place), row.numpy()
        size = self._longest * self._width * 4
        self._file.seek(index * size)
        self._file.write(values.tobytes())
        self._file.truncate((index + 1) * size)
        self._file.flush()
        self._place[number] = (index, len(row))


def _compute(model: TapModel, batch: TaskBatch, modality: Modality, position: int) -> Tensor:
    """(tokens, width), float32, on the CPU: of one example on its own, without padding."""
    inputs, mask = batch.inputs(modality)
    inputs = inputs[position : position + 1]
    if mask is not None:
        inputs = inputs[:, : int(mask[position].sum())]
    return model.encoders[modality].prefix(inputs, None)[0].float().cpu()
