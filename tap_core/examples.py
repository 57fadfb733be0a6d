"""What a task's data looks like in memory, before any tensor. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """One example of a task.

    ``image``: uint8 (height, width, 3), any size. ``target``: a class index, an answer, or a uint8 image, by the kind.
    """

    image: np.ndarray | None
    text: str | None
    target: int | str | np.ndarray


@dataclass(frozen=True)
class TaskData:
    """A device's examples of one task; ``test`` may be empty. The two share no source item (METHOD.md section 8, 5)."""

    train: Sequence[Example]
    test: Sequence[Example]
