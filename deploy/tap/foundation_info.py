"""What a foundation is and what it would ask of a device: facts, trainable components, memory and time of a step.

The last two are estimates. Nothing is computed for them: the model runs on tensors that have shapes and no values
(torch's "meta" device), forward and backward as in training, while two counters look on.

    memory    = 4 bytes * (frozen values + 8 * trainable values) + what autograd keeps, of the task that keeps most
    seconds   = accumulation * (operations of all tasks, forward and backward) / (operations a second of one layer)

Of a trainable value there are two sets, a gradient, two moments of AdamW, and three copies: what came, what is sent,
and what is stored. The weights of attention count as kept, though fused kernels spare them. The program itself, its
libraries and its data (about half a gigabyte) are not in it. The speed is that of the machine that runs this, measured
for a moment on one layer of the backbone. It knows the model; it does not know devices' files or the command line.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from protocol.tensors import DTYPES
from tap_core.components import SHARED, mote_attention, mote_expert, owned_components
from tap_core.foundations import load_foundation
from tap_core.foundations.base import Foundation
from tap_core.model.adapters import PARAMETER_SETS, adapter_name
from tap_core.model.tap_model import TapModel
from tap_core.model.transformer import attend, transform
from tap_core.names import ComponentName, TaskName
from tap_core.settings.federation import FederationConfig, TaskConfig
from tap_core.tasks.batch import TaskBatch
from tap_core.training.mixed_batches import task_shares

COPIES = 8
"""float32 values in memory for each trainable one while a device takes part in a round."""

MEASURED_SECONDS = 0.3
ATTENTION, EXPERT = mote_attention(SHARED), mote_expert(SHARED, SHARED)
"""Components that every device owns."""

EXAMPLE_TASKS: dict[str, dict[str, Any]] = {
    "image_class": {"kind": "image_classification", "inputs": ["image"], "classes": [f"c{i}" for i in range(10)]},
    "text_class": {"kind": "text_classification", "inputs": ["text"], "classes": [f"c{i}" for i in range(10)]},
    "image": {"kind": "image_generation", "inputs": ["image"]},
    "answer": {"kind": "text_generation", "inputs": ["image", "text"]},
}
"""A device with one task of each of the paper's kinds, where no federation is named."""


@dataclass(frozen=True)
class Estimate:
    """Of one device in training. ``examples``: of a batch, by task; ``operations``: additions and multiplications."""

    examples: dict[TaskName, int]
    text_tokens: int
    memory_bytes: int
    operations: int
    operations_per_second: float
    seconds_per_step: float


def example_federation(source: str) -> FederationConfig:
    """Default settings over the foundation at ``source``, with `EXAMPLE_TASKS`."""
    return FederationConfig.model_validate({"name": "example", "foundation": source, "tasks": EXAMPLE_TASKS})


def foundation_info(config: FederationConfig, tasks: Sequence[TaskConfig]) -> dict[str, Any]:
    """Facts, components and the estimate for a device with ``tasks``, ready for JSON.

    Raises UsageError if the foundation cannot be loaded or is too small for the settings.
    """
    foundation = load_foundation(config.foundation)
    model = TapModel(config, tasks, foundation)
    trainable = {name: 0 for name in owned_components(tasks)}
    for key, parameter in model.trainable("federated").items():
        trainable[ComponentName(key.split(":")[0])] += parameter.numel()
    frozen = frozen_values(model)
    total, width = sum(trainable.values()), DTYPES[config.wire.dtype].itemsize
    return {
        "foundation": facts(foundation, config),
        "tasks": [task.name for task in tasks],
        "frozen_parameters": frozen,
        "trainable_parameters": total,
        "trainable_share": total / (total + frozen),
        "components": {name: {"parameters": n, "bytes": n * width} for name, n in trainable.items()},
        "estimate": vars(estimate(model)),
    }


def as_lines(info: Mapping[str, Any]) -> list[str]:
    """`foundation_info` for people."""
    about, guess, components = info["foundation"], info["estimate"], info["components"]
    layers = ", ".join(f"{count} {modality}" for modality, count in about["encoder_layers"].items())
    tokens = ", ".join(f"{name} {token['text']} ({token['id']})" for name, token in about["special_tokens"].items())
    examples = ", ".join(f"{count} {task}" for task, count in guess["examples"].items())
    size = sum(component["bytes"] for component in components.values())
    width = max(map(len, components))
    return [
        f"family          {about['family']}",
        f"hidden size     {about['hidden_size']}",
        f"layers          {about['layers']} for the backbone, which takes 2L = {2 * about['stage_layers']} of them",
        f"encoder layers  {layers}",
        f"images          {about['image_size']} x {about['image_size']} pixels",
        f"texts           {about['text_positions']} tokens at most, of {about['vocabulary']} words",
        f"special tokens  {tokens}",
        f"frozen          {info['frozen_parameters'] / 1e6:.2f} million parameters",
        f"trainable       {info['trainable_parameters'] / 1e6:.2f} million ({info['trainable_share']:.1%} of all), "
        f"{size / 1e6:.1f} MB in {len(components)} components",
        *(f"  {name:{width}}  {component['bytes'] / 1e3:10.1f} kB" for name, component in components.items()),
        f"a step, estimated, of {examples} and texts of {guess['text_tokens']} tokens:",
        f"  {guess['memory_bytes'] / 1e9:.2f} GB of memory beside the program's own",
        f"  {rounded(guess['seconds_per_step'])} s on this machine ({rounded(guess['operations'] / 1e9)} billion "
        f"operations, {rounded(guess['operations_per_second'] / 1e9)} billion a second: measured just now, so other "
        "programs slow it down)",
    ]


def rounded(value: float) -> str:
    """Two digits that count, without an exponent.

    >>> rounded(187.4), rounded(0.000412), rounded(2_000_000)
    ('190', '0.00041', '2000000')
    """
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")


def facts(foundation: Foundation, config: FederationConfig) -> dict[str, Any]:
    """What the foundation's files say, and what follows for the backbone."""
    encoders, backbone = foundation.split(config.model.stage_layers)
    special, tokenizer = foundation.special, foundation.tokenizer
    return {
        "family": foundation.family,
        "hidden_size": foundation.hidden,
        "layers": len(foundation.blocks),
        "stage_layers": len(backbone) // 2,
        "encoder_layers": {modality: len(encoder.blocks) for modality, encoder in sorted(encoders.items())},
        "image_size": foundation.image_size,
        "image_mean": list(foundation.mean),
        "image_std": list(foundation.std),
        "text_positions": foundation.text_positions,
        "vocabulary": int(foundation.word_embeddings.shape[0]),
        "special_tokens": {
            name: {"id": token, "text": tokenizer.id_to_token(token)} for name, token in sorted(vars(special).items())
        },
    }


def frozen_values(model: TapModel) -> int:
    """Frozen parameters that a device with this model holds, each counted once however many modules share it."""
    trained = {id(p) for parameter_set in PARAMETER_SETS for p in model.trainable(parameter_set).values()}
    return sum(p.numel() for p in {p.data_ptr(): p for p in model.parameters() if id(p) not in trained}.values())


def estimate(model: TapModel) -> Estimate:
    """Memory and time of a step. The model is of no use afterwards: its values are gone."""
    training = model.config.training
    trainable = sum(p.numel() for p in model.trainable("federated").values())
    held = 4 * (frozen_values(model) + COPIES * trainable)
    examples = task_shares(dict.fromkeys(model.tasks, 1), training.batch_size, "equal")
    model.train()
    for parameter in model.trainable("federated").values():
        parameter.requires_grad_(True)
    speed = measured_speed(model)
    model.to("meta")
    operations, kept = 0, 0
    for name, task in model.tasks.items():
        task_operations, task_kept = count(model, dummy_batch(model, task, examples[name]))
        operations += task_operations
        kept = max(kept, task_kept)
    operations *= training.accumulation
    return Estimate(examples, model.preprocessor.text_length, held + kept, operations, speed, operations / speed)


def dummy_batch(model: TapModel, task: TaskConfig, size: int) -> TaskBatch:
    """Inputs of full size without values; the target serves only as the words before each word."""
    side, length = model.preprocessor.image_size, model.preprocessor.text_length

    def integers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device="meta")

    return TaskBatch(
        task,
        torch.zeros(size, 3, side, side, device="meta") if "image" in task.inputs else None,
        integers(size, length) if "text" in task.inputs else None,
        integers(size, length) if "text" in task.inputs else None,
        integers(size, task.length + 1),
    )


def count(model: TapModel, batch: TaskBatch) -> tuple[int, int]:
    """Floating point operations of one forward and backward pass, and the bytes that autograd keeps between the two."""
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # views of one storage are counted once; held, so that none takes its place
        return tensor

    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(batch, "federated")
            loss = output.flatten(1).log_softmax(1).sum()
        loss.backward()
    for parameter in model.trainable("federated").values():
        parameter.grad = None
    return int(counter.get_total_flops()), sum(storage.nbytes() for storage in kept.values())


def measured_speed(model: TapModel, examples: int = 8, tokens: int = 64) -> float:
    """Floating point operations a second of one of the backbone's layers, forward and backward, on this machine."""
    layer, shared = model.backbone.mote[0], [adapter_name("federated", name) for name in (ATTENTION, EXPERT)]
    x = torch.ones(1, examples, tokens, model.hidden, requires_grad=True)

    def once() -> float:
        start = time.perf_counter()
        transform(layer, attend(layer, x, None, shared[:1]), shared[1:]).sum().backward()
        return time.perf_counter() - start

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels are not counted
        once()
    end, best = time.perf_counter() + MEASURED_SECONDS, once()
    while time.perf_counter() < end:
        best = min(best, once())
    return int(counter.get_total_flops()) / best
