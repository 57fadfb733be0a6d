"""What a teacher adds to the loss of the set that learns from it (docs/method.md section 5, step 2).

It knows batches and outputs; it does not know phases, rounds or tasks that are worse taught than not.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from tap_core.algorithms.tap import DistillationSettings
from tap_core.model.dropout import without_dropout
from tap_core.model.tap_model import TapModel
from tap_core.names import TaskName
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.training.loop import Extra


def teaching(
    model: TapModel,
    settings: DistillationSettings,
    accelerator: Accelerator,
    taught: Callable[[TaskName], bool] | None = None,
) -> Extra:
    """beta[t(o)] T^2 KL(teacher || student) per example, the federated set being the teacher, frozen, in eval mode.

    ``taught``: which tasks are, by name; all if it is None.
    """

    def extra(batch: TaskBatch) -> Callable[[Tensor], Tensor]:
        if taught is not None and not taught(batch.task.name):
            return lambda output: output.new_zeros(len(output), dtype=torch.float32)
        # no dropout in the teacher: its values do not depend on the student's draws
        with without_dropout(), torch.no_grad(), accelerator.autocast():
            given = model(batch, "federated")
        kind = task_kind(batch.task.kind)
        beta = settings.beta.of(kind.name)
        return lambda output: beta * kind.divergence(output, given, batch.target, settings.temperature)

    return extra
