"""How wrong answers are as indicator, as the task is measured where an example shows it (docs/method.md section 9)."""

from typing import TYPE_CHECKING

from tap_core.tasks import task_kind
from tap_core.triggers.base import ExampleIndicator

if TYPE_CHECKING:
    from torch import Tensor

    from tap_core.model.adapters import ParameterSet
    from tap_core.model.tap_model import TapModel
    from tap_core.tasks.batch import TaskBatch


class Error(ExampleIndicator):
    def scores(self, model: "TapModel", parameter_set: "ParameterSet", batch: "TaskBatch") -> "Tensor":
        return task_kind(batch.task.kind).error(model(batch, parameter_set), batch.target)
