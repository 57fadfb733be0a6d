"""The task's own training loss as indicator, in eval mode (docs/method.md section 9)."""

from typing import TYPE_CHECKING

from tap_core.tasks import task_kind
from tap_core.triggers.base import ExampleIndicator

if TYPE_CHECKING:
    from torch import Tensor

    from tap_core.model.adapters import ParameterSet
    from tap_core.model.tap_model import TapModel
    from tap_core.tasks.batch import TaskBatch


class Loss(ExampleIndicator):
    def scores(self, model: "TapModel", parameter_set: "ParameterSet", batch: "TaskBatch") -> "Tensor":
        loss: Tensor = task_kind(batch.task.kind).loss(model(batch, parameter_set), batch.target)
        return loss
