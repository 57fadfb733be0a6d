"""TAP, Two-Stage Adaptive Personalization (arXiv 2509.26524), on one device: docs/method.md sections 4 and 5.

It reads as the sections do. It does not know who carries tensors, files or other devices.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tap_core.algorithms.base import Algorithm, DeviceState, Local, Part
from tap_core.algorithms.replacement import replaced_components
from tap_core.examples import Example
from tap_core.model.adapters import ParameterSet
from tap_core.model.dropout import without_dropout
from tap_core.model.tap_model import TapModel
from tap_core.names import TaskName
from tap_core.settings.federation import FederationConfig, TaskConfig
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.training.loop import Extra
from tap_core.training.optimizer import warmed_up
from tap_core.triggers import DECISIONS, INDICATORS
from tap_core.triggers.base import Evidence

BATCH = 64
"""Held-out examples that are scored at a time."""


class Tap(Algorithm):
    """Replacement by a trigger in stage 1, distillation in stage 2."""

    def __init__(self, config: FederationConfig) -> None:
        super().__init__(config)
        self.decision = DECISIONS.named(config.tap.decision)(config.tap)
        self.indicator = INDICATORS.named(config.tap.indicator)()

    def take_part(self, local: Local, round_number: int, state: DeviceState) -> Part:
        """Section 4. Step 1, loading w_i strictly, is the caller's, and so is step 5, what is sent."""
        model, training = local.model, self.config.training
        rate = warmed_up(self.config, round_number)
        # 2: train w_i
        federated_loss = local.train("federated", "federated", round_number, steps=training.steps, learning_rate=rate)
        # 3: where the trigger of a task fires, its part of the personal set becomes a copy of the trained one
        trained = model.state("federated")
        before = state.personal or trained
        model.load("personal", before)
        fired = {task.name: self._fires(local, task, federated_loss, state) for task in local.tasks}
        replaced = replaced_components(local.tasks, fired, self.config.tap.shared_replacement)
        model.load("personal", {**before, **{name: trained[name] for name in replaced}})
        # 4: train x_i on other batches
        personal_loss = local.train("personal", "personal", round_number, steps=training.steps, learning_rate=rate)
        return Part(trained, model.state("personal"), federated_loss, personal_loss, fired, replaced)

    def finish(self, local: Local, state: DeviceState) -> None:
        """Section 5: the global model, trained on locally for a while, teaches the personal one."""
        settings = self.config.distillation
        if settings.steps == 0:
            return
        train = functools.partial(local.train, steps=settings.steps, learning_rate=settings.learning_rate)
        train("federated", "teacher", "stage 2")
        train("personal", "student", "stage 2", extra=teaching(local.model, self.config, local.accelerator))

    def _fires(
        self, local: Local, task: TaskConfig, federated_loss: Mapping[TaskName, float], state: DeviceState
    ) -> bool:
        """R[o]. A history of infinity is that of a device which has not taken part yet."""
        if state.personal_loss[task.name] == math.inf:
            return math.isfinite(federated_loss[task.name])

        @functools.cache
        def held_out() -> tuple[np.ndarray, np.ndarray]:
            examples = local.data[task.name].decision
            return self._scores(local, "federated", task, examples), self._scores(local, "personal", task, examples)

        evidence = Evidence(task, federated_loss[task.name], state.personal_loss[task.name], held_out)
        return self.decision.replaces(evidence)

    def _scores(
        self, local: Local, parameter_set: ParameterSet, task: TaskConfig, examples: Sequence[Example]
    ) -> np.ndarray:
        local.model.eval()
        parts = []
        for start in range(0, len(examples), BATCH):
            rows = [examples[i] for i in range(start, min(start + BATCH, len(examples)))]
            batch = local.model.preprocessor.batch(task, rows).to(local.accelerator.device)
            with torch.no_grad(), local.accelerator.autocast():
                parts.append(self.indicator.scores(local.model, parameter_set, batch).double().cpu().numpy())
        return np.concatenate(parts) if parts else np.empty(0)


def teaching(model: TapModel, config: FederationConfig, accelerator: Accelerator) -> Extra:
    """beta[t(o)] T^2 KL(teacher || student) per example, the federated set being the teacher, frozen, in eval mode."""
    settings = config.distillation

    def extra(batch: TaskBatch) -> Callable[[Tensor], Tensor]:
        # no dropout in the teacher: its values do not depend on the student's draws
        with without_dropout(), torch.no_grad(), accelerator.autocast():
            taught = model(batch, "federated")
        kind = task_kind(batch.task.kind)
        beta = settings.beta.of(kind.name)
        return lambda output: beta * kind.divergence(output, taught, batch.target, settings.temperature)

    return extra
