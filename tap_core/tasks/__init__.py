"""Task kinds: one file each, one line below (docs/method.md section 2). Importing this loads no torch.

A task kind says what a task's data hold, what its decoder is, and how good an answer is. Another package adds one with
`KINDS.add` or an entry point (`tap_core.registry`); docs/method.md and CONTRIBUTING.md show how.
"""

from tap_core.registry import Registry
from tap_core.tasks.base import TaskKind

__all__ = ["KINDS", "TaskKind", "task_kind"]

KINDS: Registry[type[TaskKind]] = Registry("task kind", "tap_edge.task_kinds")

KINDS.add("image_classification", "tap_core.tasks.image_classification:ImageClassification")
KINDS.add("text_classification", "tap_core.tasks.text_classification:TextClassification")
KINDS.add("image_generation", "tap_core.tasks.image_generation:ImageGeneration")
KINDS.add("text_generation", "tap_core.tasks.text_generation:TextGeneration")
KINDS.add("regression", "tap_core.tasks.regression:Regression")
KINDS.add("multilabel", "tap_core.tasks.multilabel:Multilabel")


def task_kind(name: str) -> TaskKind:
    """The task kind of this name. Raises UsageError, with the nearest known name, if there is none."""
    return KINDS.named(name)()
