"""One phase of local training of one parameter set, with accelerate (docs/method.md section 4, steps 2 and 4).

It knows batches, losses, the optimizer and the machine. It does not know rounds, replacement or where parameters go.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from tap_core.errors import Diverged
from tap_core.examples import Example
from tap_core.model.adapters import ParameterSet
from tap_core.model.dropout import examples_from
from tap_core.model.tap_model import TapModel
from tap_core.names import TaskName
from tap_core.settings.federation import TrainingConfig
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.training.mixed_batches import mixed_batches
from tap_core.training.optimizer import BETAS, EPSILON
from tap_core.training.progress import OnProgress
from tap_core.training.resources import Resources

Extra = Callable[[TaskBatch], Callable[[Tensor], Tensor]]
"""An addition to the loss: a batch to a function of the model's output that gives one value per example, (batch,). What
it computes itself, before the model's activations are kept, takes none of their memory."""


@dataclass(frozen=True)
class Pull:
    """strength / 2 times the squared distance from ``towards`` (by ``component:tensor``), added to a step's loss; of
    gradients it is their own addition, before clipping."""

    strength: float
    towards: Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainingPhase:
    """What one phase of training is: its name in progress reports, seed, optimizer steps and learning rate."""

    name: str
    seed: int
    steps: int
    learning_rate: float


def train(
    model: TapModel,
    parameter_set: ParameterSet,
    data: Mapping[TaskName, Sequence[Example]],
    settings: TrainingConfig,
    phase: TrainingPhase,
    accelerator: Accelerator,
    *,
    extra: Extra | None = None,
    pull: Pull | None = None,
    only: Callable[[str], bool] | None = None,
    watch: Callable[[int], bool] | None = None,
    on_progress: OnProgress | None = None,
    resources: Resources | None = None,
) -> dict[TaskName, float]:
    """Train one parameter set; returns the mean training loss per example by task, h[o], without ``extra``.

    ``data``: training examples by task. Each step minimises the mean loss over the batch's examples, whatever their
    tasks: with shares in proportion to n_{i,o} that is the objective which aggregation averages (docs/method.md section
    4).
    The optimizer is AdamW, made anew for the phase. Equal seeds on equal machines give equal bits in float32 on a CPU.
    ``resources``: a device's own, kept from phase to phase; its data must then be the same in each. A batch that does
    not fit into their memory is computed in parts, with the gradient of the whole but for rounding.
    ``only``: which of a component's tensors are trained, by name.
    ``watch``: called with the number of steps done, it ends the phase by saying true; it may run the model.
    Raises Diverged if a loss stops being finite; the parameter set is then of no use.
    """
    resources = Resources() if resources is None else resources
    torch.manual_seed(phase.seed)
    model.train()
    model.recompute(resources.checkpointing)
    whole = model.trainable(parameter_set)
    named = {name: value for name, value in whole.items() if only is None or only(name.partition(":")[2])}
    parameters = list(named.values())
    computed = (parameter_set, tuple(named), extra is not None)  # what decides how much is kept
    for name, parameter in whole.items():
        parameter.requires_grad_(name in named)
    # not accelerator.prepare: the accelerator would hold it until its free_memory, which collects all garbage
    optimizer = AcceleratedOptimizer(
        torch.optim.AdamW(
            parameters,
            lr=phase.learning_rate,
            betas=BETAS,
            eps=EPSILON,
            weight_decay=settings.weight_decay,
            fused=True,
        ),
        scaler=accelerator.scaler,
    )
    numbers = {name: range(len(examples)) for name, examples in data.items()}
    batches = mixed_batches(numbers, settings.batch_size, phase.seed, settings.shares)
    totals, counts = dict.fromkeys(data, 0.0), dict.fromkeys(data, 0)

    def loss(batch: TaskBatch, *, count: bool = True) -> Tensor:
        """Per example, (batch,)."""
        addition = None if extra is None else extra(batch)
        with accelerator.autocast():
            output = model(batch, parameter_set)
        each = task_kind(batch.task.kind).loss(output, batch.target)
        if count:
            totals[batch.task.name] += float(each.detach().double().sum())
            counts[batch.task.name] += batch.size
        return each if addition is None else each + addition(output)

    def backward(batch: TaskBatch, size: int) -> None:
        """The gradient of the sum of the examples' losses, by the size of the mixed batch, is added."""
        together = resources.examples_at_once(model, batch, lambda part: loss(part, count=False), computed)
        state = torch.get_rng_state()
        for first in range(0, batch.size, together):
            if first:
                torch.set_rng_state(state)  # the parts of a batch see the dropout that the whole would have seen
            with examples_from(first):
                accelerator.backward(loss(batch.rows(first, first + together)).sum() / size)

    for step in range(phase.steps):
        for _ in range(settings.accumulation):
            with accelerator.accumulate(model):
                mixed = next(batches)
                size = sum(map(len, mixed.values()))
                for name, chosen in mixed.items():
                    examples = [data[name][number] for number in chosen]
                    batch = model.preprocessor.batch(model.tasks[name], examples).to(accelerator.device)
                    with accelerator.autocast():
                        batch = resources.prefixes.complete(model, batch, chosen)
                    backward(batch, size)
                if accelerator.sync_gradients:
                    accelerator.unscale_gradients(optimizer)
                    for name, parameter in named.items() if pull is not None else ():
                        assert pull is not None and parameter.grad is not None
                        parameter.grad.add_(parameter.detach() - pull.towards[name], alpha=pull.strength)
                    accelerator.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
        if not all(math.isfinite(total) for total in totals.values()):
            raise Diverged(
                f"training diverged in step {step + 1} of {phase.name} (loss is not finite); lower the learning rate"
            )
        if on_progress is not None:
            on_progress(phase.name, step + 1, phase.steps)
        if watch is not None:
            if watch(step + 1):
                break
            model.train()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return {name: totals[name] / counts[name] for name in sorted(data) if counts[name]}
