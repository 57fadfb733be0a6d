"""A batch of one task as tensors: what models are called with and losses are computed on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tap_core.settings.federation import TaskConfig


@dataclass(frozen=True)
class TaskBatch:
    """Tensors of ``size`` examples of one task.

    ``image``: float32 (batch, 3, size, size), normalised. ``input_ids`` and ``attention_mask``: int64 (batch, length).
    ``target``: (batch, ...), what the task's kind makes of the examples' targets (`TaskKind.encode`).
    """

    task: TaskConfig
    image: Tensor | None
    input_ids: Tensor | None
    attention_mask: Tensor | None
    target: Tensor

    @property
    def size(self) -> int:
        return self.target.shape[0]

    def to(self, device: torch.device) -> "TaskBatch":
        image, ids, mask = (
            None if t is None else t.to(device) for t in (self.image, self.input_ids, self.attention_mask)
        )
        return TaskBatch(self.task, image, ids, mask, self.target.to(device))
