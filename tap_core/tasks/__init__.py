"""Task kinds: one file each, one line below (docs/method.md section 2). Importing this loads no torch.

A task kind says what a task's data hold, what its decoder is, and how good an answer is. Another package adds one with
`KINDS.add` or an entry point (`tap_core.registry`); docs/method.md and CONTRIBUTING.md show how.
"""

from typing import TYPE_CHECKING

from tap_core.faces import imported_when_asked
from tap_core.registry import Registry
from tap_core.tasks.base import Facts, TaskKind
from tap_core.tasks.metrics import Metric

__all__ = ["KINDS", "Facts", "HeadSizes", "Metric", "PooledHead", "TaskBatch", "TaskKind", "Tokens", "task_kind"]

if TYPE_CHECKING:
    from tap_core.tasks.batch import TaskBatch
    from tap_core.tasks.decoders import HeadSizes, PooledHead, Tokens
else:
    __getattr__ = imported_when_asked(
        __name__, {"batch": ("TaskBatch",), "decoders": ("HeadSizes", "PooledHead", "Tokens")}
    )

KINDS: Registry[type[TaskKind]] = Registry("task kind", "tap_edge.task_kinds")

KINDS.add("image_classification", "tap_core.tasks.image_classification:ImageClassification")
KINDS.add("text_classification", "tap_core.tasks.text_classification:TextClassification")
KINDS.add("image_generation", "tap_core.tasks.image_generation:ImageGeneration")
KINDS.add("text_generation", "tap_core.tasks.text_generation:TextGeneration")
KINDS.add("regression", "tap_core.tasks.regression:Regression")
KINDS.add("multilabel", "tap_core.tasks.multilabel:Multilabel")


def task_kind(name: str) -> TaskKind:
    """The task kind of this name.

    Args:
        name: A name of `KINDS`.

    Returns:
        An object of the kind's class. It holds no state.

    Raises:
        UsageError: There is no such kind; the message has the nearest known name.

    >>> task_kind("regression").words
    'regression'
    """
    return KINDS.named(name)()
