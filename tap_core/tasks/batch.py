"""A batch of one task as tensors: what models are called with and losses are computed on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tap_core.components import Modality
from tap_core.settings.federation import TaskConfig


@dataclass(frozen=True)
class TaskBatch:
    """Tensors of ``size`` examples of one task.

    ``image``: float32 (batch, 3, size, size), normalised. ``input_ids`` and ``attention_mask``: int64 (batch, length).
    ``target``: (batch, ...), what the task's kind makes of the examples' targets (`TaskKind.encode`). ``prefixes``:
    by modality what the encoder's layers below its first adapter make of the input, (batch, tokens, width), if known.
    """

    task: TaskConfig
    image: Tensor | None
    input_ids: Tensor | None
    attention_mask: Tensor | None
    target: Tensor
    prefixes: Mapping[Modality, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.target.shape[0]

    def inputs(self, modality: Modality) -> tuple[Tensor, Tensor | None]:
        """What the batch holds of one modality.

        Args:
            modality: One of the task's inputs.

        Returns:
            Pixels (batch, 3, size, size) and None, or token ids (batch, length) and their bool mask, false at padding.
        """
        if modality == "image":
            assert self.image is not None
            return self.image, None
        assert self.input_ids is not None and self.attention_mask is not None
        return self.input_ids, self.attention_mask.bool()

    def to(self, device: torch.device) -> "TaskBatch":
        """The same batch elsewhere.

        Args:
            device: Where its tensors shall be.

        Returns:
            A batch of the same task.
        """
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, first: int, last: int) -> "TaskBatch":
        """Some of the examples.

        Args:
            first: The first of them, from 0.
            last: The one after the last of them.

        Returns:
            A batch of these; texts stay as long as the whole batch's.
        """
        return self._each(lambda tensor: tensor[first:last])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TaskBatch":
        image, ids, mask = (
            None if tensor is None else change(tensor) for tensor in (self.image, self.input_ids, self.attention_mask)
        )
        prefixes = {modality: change(tensor) for modality, tensor in self.prefixes.items()}
        return TaskBatch(self.task, image, ids, mask, change(self.target), prefixes)
