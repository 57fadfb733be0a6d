"""A batch of one task as tensors: what models are called with and losses are computed on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tap_core.settings.federation import TaskConfig

GENERATED_IMAGE_SIZE = 64
"""Side of a generated image in pixels (METHOD.md section 3)."""

IGNORED = -100
"""Label of a padding token: no loss is computed there."""


@dataclass(frozen=True)
class TaskBatch:
    """Tensors of ``size`` examples of one task.

    ``image``: float32 (batch, 3, size, size), normalised. ``input_ids`` and ``attention_mask``: int64 (batch, length).
    ``target``: class indices int64 (batch,), normalised pixels float32 (batch, 3, 64, 64), or answer tokens int64
    (batch, length + 1) that begin with the start token and are padded with ``IGNORED``.
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
