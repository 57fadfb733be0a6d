"""One phase of local training of one parameter set, with accelerate (METHOD.md section 4, steps 2 and 4).

It knows batches, losses, the optimizer and the machine. It does not know rounds, replacement or where parameters go.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from tap_core.adapters import ParameterSet
from tap_core.config import Settings, TrainingConfig
from tap_core.data import Example, TaskBatch, mixed_batches
from tap_core.errors import Diverged, UsageError
from tap_core.model import TapModel
from tap_core.objectives import losses
from tap_core.optimizer import BETAS, EPSILON

Progress = Callable[[str, int, int], None]
"""Called with the phase's name, the step just done and the number of steps; what it raises ends the training."""

Extra = Callable[[TaskBatch, Tensor], Tensor]
"""An addition to the loss: a batch and the model's output to one value per example, (batch,)."""


class Runtime(Settings):
    """Where and how a device trains."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""


@dataclass(frozen=True)
class Phase:
    """What one phase of training is: its name in progress reports, seed, optimizer steps and learning rate."""

    name: str
    seed: int
    steps: int
    learning_rate: float


def make_accelerator(runtime: Runtime, accumulation: int) -> Accelerator:
    """An accelerator for this machine.

    Raises UsageError if the runtime asks for a CUDA device or a precision that the machine does not have.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UsageError('runtime.device is "cuda" and torch sees no CUDA device; set it to "auto" or "cpu"')
    on_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    if runtime.precision == "fp16" and on_cpu:
        raise UsageError('runtime.precision "fp16" needs a CUDA device; set it to "fp32" or "bf16"')
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    mixed = "no" if runtime.precision == "fp32" else runtime.precision
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision per process otherwise
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, gradient_accumulation_steps=accumulation)


def train(
    model: TapModel,
    which: ParameterSet,
    data: Mapping[str, Sequence[Example]],
    settings: TrainingConfig,
    phase: Phase,
    accelerator: Accelerator,
    *,
    extra: Extra | None = None,
    on_progress: Progress | None = None,
) -> dict[str, float]:
    """Train one parameter set; returns the mean training loss per example by task, h[o], without ``extra``.

    ``data``: training examples by task. Each step minimises the sum over tasks of the mean loss per example. The
    optimizer is AdamW, made anew for the phase. Equal seeds on equal machines give equal bits in float32 on a CPU.
    Raises Diverged if a loss stops being finite; the parameter set is then of no use.
    """
    torch.manual_seed(phase.seed)
    model.train()
    parameters = list(model.trainable(which).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = accelerator.prepare(
        torch.optim.AdamW(
            parameters,
            lr=phase.learning_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    )
    batches = mixed_batches(data, settings.batch_size, phase.seed)
    totals, counts = dict.fromkeys(data, 0.0), dict.fromkeys(data, 0)
    for step in range(phase.steps):
        for _ in range(settings.accumulation):
            with accelerator.accumulate(model):
                for name, examples in next(batches).items():
                    batch = model.preprocessor.batch(model.tasks[name], examples).to(accelerator.device)
                    with accelerator.autocast():
                        output = model(batch, which)
                    each = losses(output, batch)
                    totals[name] += float(each.detach().double().sum())
                    counts[name] += batch.size
                    if extra is not None:
                        each = each + extra(batch, output)
                    accelerator.backward(each.mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
        if not all(math.isfinite(total) for total in totals.values()):
            raise Diverged(
                f"training diverged in step {step + 1} of {phase.name} (loss is not finite); lower the learning rate"
            )
        if on_progress is not None:
            on_progress(phase.name, step + 1, phase.steps)
    accelerator.free_memory()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return {name: totals[name] / counts[name] for name in sorted(data) if counts[name]}
