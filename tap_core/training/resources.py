"""What a device may spend on a step of training besides its processor: memory for activations, disk for a cache.

It knows what a forward pass keeps for the backward pass. It does not know losses or optimizers.
"""

from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import Tensor

from tap_core.model.tap_model import TapModel
from tap_core.settings.runtime import Runtime
from tap_core.tasks.batch import TaskBatch
from tap_core.training.prefix_cache import PrefixCache

MEGABYTE = 1 << 20


class Resources:
    """One device's, for as long as its process lives."""

    def __init__(self, runtime: Runtime | None = None, directory: Path | None = None) -> None:
        """``directory``: a private one, for the cache of the encoders' untrained layers."""
        runtime = Runtime() if runtime is None else runtime
        self.checkpointing = runtime.checkpointing
        self.prefixes = PrefixCache(directory, runtime.cache_mb)
        self._budget = None if runtime.memory_mb is None else runtime.memory_mb * MEGABYTE
        self._kept: dict[tuple[object, ...], int] = {}

    def examples_at_once(
        self, model: TapModel, batch: TaskBatch, forward: Callable[[TaskBatch], Tensor], computed: Hashable = None
    ) -> int:
        """How many of the batch's examples go through the model together: all of them, or as many as the memory holds,
        one at the least. It depends on the budget, the batch's shapes and what is computed alone, not on what was
        computed before, so that runs stay repeatable.

        ``forward``: a batch to its losses; ``computed`` tells what it computes from what else it may be. What it keeps
        for one example is measured once for each shape of each.
        """
        if self._budget is None:
            return batch.size
        one = batch.rows(0, 1)
        tensors = (one.image, one.input_ids, one.target)
        shape = (computed, batch.task.name, *(None if t is None else tuple(t.shape) for t in tensors))
        if shape not in self._kept:
            self._kept[shape] = kept_bytes(model, lambda: forward(one))
        return min(batch.size, max(1, self._budget // max(1, self._kept[shape])))


def kept_bytes(model: TapModel, forward: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, the model's own not counted. The state of
    torch's generator is left as it was."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), model.embeddings)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # kept here, so that no other tensor takes the same address
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(storage.nbytes() for storage in kept.values())
