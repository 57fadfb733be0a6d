"""What a task's data looks like in memory, before any tensor. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Example:
    """One example of a task.

    ``image``: uint8 (height, width, 3), any size. ``target``: by the task's kind, for example the index of a class, an
    answer, or a uint8 image.
    """

    image: np.ndarray | None
    text: str | None
    target: Any


@dataclass(frozen=True)
class TaskData:
    """A device's examples of one task; ``test`` may be empty. The parts share no source item (docs/method.md section 8,
    trap 5).

    ``decision``: cut from the training items for a trigger that compares sets on held-out examples (docs/method.md
    section 9), never trained on; empty where no trigger needs it.
    """

    train: Sequence[Example]
    test: Sequence[Example]
    decision: Sequence[Example] = ()


def targets_of(examples: Sequence[Example]) -> Sequence[Any]:
    """The examples' targets; a sequence that has them as ``targets`` need not decode its images for that."""
    known = getattr(examples, "targets", None)
    return [example.target for example in examples] if known is None else known
