"""Stage 2: the final global model, trained on locally for a while, teaches the personal one (METHOD.md section 5).

It reads as the section does. It does not know rounds or files.
"""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from tap_core.examples import Example
from tap_core.model.tap_model import TapModel
from tap_core.seeds import derive_seed
from tap_core.settings.federation import FederationConfig
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.training.loop import Extra, Phase, Progress, train


def distil(
    model: TapModel,
    data: Mapping[str, Sequence[Example]],
    config: FederationConfig,
    device: str,
    accelerator: Accelerator,
    on_progress: Progress | None = None,
) -> None:
    """Steps 1 and 2 of stage 2, on the two sets that ``model`` holds: w_i becomes the teacher, x_i the result.

    ``data``: training examples by task. ``model`` must hold the final global components as its federated set.
    """
    settings = config.distillation
    if settings.steps == 0:
        return

    def phase(name: str) -> Phase:
        return Phase(name, derive_seed(config.seed, device, "stage 2", name), settings.steps, settings.learning_rate)

    train(model, "federated", data, config.training, phase("teacher"), accelerator, on_progress=on_progress)

    train(
        model,
        "personal",
        data,
        config.training,
        phase("student"),
        accelerator,
        extra=teaching(model, config, accelerator),
        on_progress=on_progress,
    )


def teaching(model: TapModel, config: FederationConfig, accelerator: Accelerator) -> Extra:
    """beta[t(o)] T^2 KL(teacher || student) per example, the federated set being the teacher, frozen, in eval mode."""
    settings = config.distillation

    def extra(batch: TaskBatch, output: Tensor) -> Tensor:
        model.eval()  # no dropout in the teacher: its values do not depend on the student's draws
        with torch.no_grad(), accelerator.autocast():
            taught = model(batch, "federated")
        model.train()
        kind = task_kind(batch.task.kind)
        return settings.beta.of(kind.name) * kind.divergence(output, taught, batch.target, settings.temperature)

    return extra
