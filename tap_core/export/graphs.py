"""The ONNX graphs of one task: merged weights in, files out, and the largest difference from torch.

A classifier or image generator is one graph. A text generator is two, with the loop outside: the encoder, and one step
of the decoder with its key-value cache. It knows the model and ONNX; it does not know directories' other files.
"""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from tap_core.components import components_of_task, encoder
from tap_core.model.adapters import ParameterSet, adapter_name, merge
from tap_core.model.tap_model import TapModel
from tap_core.settings.federation import TaskConfig
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.tasks.decoders import TextDecoder
from tap_core.tasks.text_generation import IGNORED

Arrays = dict[str, np.ndarray]


def merged_for(model: TapModel, task: TaskConfig, parameter_set: ParameterSet) -> TapModel:
    """A float32 copy of the model (on the CPU) with the adapters of one task and one set merged into its weights."""
    merged = copy.deepcopy(model).float().eval()
    for modality in task.inputs:
        merge(merged.encoders[modality], [adapter_name(parameter_set, encoder(modality))], route=False)
    merge(merged.backbone, [adapter_name(parameter_set, name) for name in components_of_task(task)], route=True)
    return merged.requires_grad_(False)


class Whole(nn.Module):
    """The task's inputs to its output, for the kinds that need no loop."""

    def __init__(self, model: TapModel, task: TaskConfig, parameter_set: ParameterSet) -> None:
        super().__init__()
        self.model, self.task, self.parameter_set = model, task, parameter_set

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        tokens = self.model.encode(_batch(self.task, inputs), self.parameter_set)
        output: Tensor = self.model.decoder(self.task.name, self.parameter_set)(tokens)
        return output


class Encode(Whole):
    """The task's inputs to the tokens that the text decoder attends to, and their mask as int64."""

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        tokens = self.model.encode(_batch(self.task, inputs), self.parameter_set)
        return tokens.values, tokens.mask.long()


class Step(nn.Module):
    """One word to the logits of the next, with the cache of the words before."""

    def __init__(self, decoder: TextDecoder, embeddings: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("embeddings", embeddings)

    def forward(
        self, token: Tensor, memory: Tensor, memory_mask: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, (key, value) = self.decoder(memory, memory_mask.bool(), token, self.embeddings, (past_key, past_value))
        return logits[:, -1], key, value


def write_graphs(model: TapModel, batch: TaskBatch, directory: Path, parameter_set: ParameterSet) -> tuple[str, ...]:
    """Export the graphs of ``batch``'s task with dynamic batch and text lengths; returns the files' names."""
    task = batch.task
    merged = merged_for(model, task, parameter_set)
    two = _take(batch, 2)  # a size of one would be frozen into the graph
    rows = Dim("batch", min=1, max=4096)
    inputs = _inputs(two)
    shapes = {name: {0: rows} if name == "image" else {0: rows, 1: Dim("words", min=1)} for name in inputs}
    if "attention_mask" in inputs:
        shapes["attention_mask"][1] = shapes["input_ids"][1]
    kind = task_kind(task.kind)
    if not kind.generates_text:
        whole = Whole(merged, task, parameter_set)
        _write(whole, {"inputs": inputs}, {"inputs": shapes}, [kind.output], directory / "model.onnx")
        return kind.files
    encode = Encode(merged, task, parameter_set)
    _write(encode, {"inputs": inputs}, {"inputs": shapes}, ["memory", "memory_mask"], directory / "encoder.onnx")
    decoder = merged.decoder(task.name, parameter_set)
    assert isinstance(decoder, TextDecoder)
    with torch.no_grad():
        memory, mask = encode(inputs)
    past = torch.zeros(len(decoder.layers), 2, decoder.heads, 3, decoder.width // decoder.heads)
    tokens, earlier = Dim("tokens", min=1), Dim("earlier", min=0)
    cache = {1: rows, 3: earlier}
    arguments = {
        "token": (torch.zeros(2, 1, dtype=torch.long), {0: rows}),
        "memory": (memory, {0: rows, 1: tokens}),
        "memory_mask": (mask, {0: rows, 1: tokens}),
        "past_key": (past, cache),
        "past_value": (past.clone(), cache),
    }
    _write(
        Step(decoder, merged.embeddings),
        {name: value for name, (value, _) in arguments.items()},
        {name: shape for name, (_, shape) in arguments.items()},
        ["logits", "key", "value"],
        directory / "step.onnx",
    )
    return kind.files


def difference(model: TapModel, batch: TaskBatch, directory: Path, parameter_set: ParameterSet) -> float:
    """The largest absolute difference of outputs between the unmerged model in torch and the files in onnxruntime.

    For text: of the logits at every word of the batch's answers, the words fed one at a time through the cache.
    """
    model.eval()
    with torch.no_grad():
        expected = model(batch, parameter_set).float().numpy()
    inputs = {name: tensor.numpy() for name, tensor in _inputs(batch).items()}
    if not task_kind(batch.task.kind).generates_text:
        (actual,) = _session(directory / "model.onnx").run(None, inputs)
        return float(np.abs(actual - expected).max())
    memory, mask = _session(directory / "encoder.onnx").run(None, inputs)
    step = _session(directory / "step.onnx")
    cache = {i.name: (i.shape[0], batch.size, i.shape[2], 0, i.shape[4]) for i in step.get_inputs() if "past" in i.name}
    past = {name: np.zeros(shape, np.float32) for name, shape in cache.items()}
    worst = 0.0
    for index in range(batch.target.shape[1] - 1):
        words = batch.target[:, index : index + 1].clamp(min=0).numpy()
        logits, key, value = step.run(None, {"token": words, "memory": memory, "memory_mask": mask, **past})
        past = {"past_key": key, "past_value": value}
        real = batch.target[:, index + 1].numpy() != IGNORED
        if real.any():
            worst = max(worst, float(np.abs(logits - expected[:, index])[real].max()))
    return worst


def _batch(task: TaskConfig, inputs: Mapping[str, Tensor]) -> TaskBatch:
    some = next(iter(inputs.values()))
    return TaskBatch(task, inputs.get("image"), inputs.get("input_ids"), inputs.get("attention_mask"), target=some)


def _inputs(batch: TaskBatch) -> dict[str, Tensor]:
    named = {"image": batch.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _take(batch: TaskBatch, count: int) -> TaskBatch:
    """The first ``count`` examples, repeated if there are fewer."""
    index = torch.arange(count) % batch.size
    image, ids, mask = (None if t is None else t[index] for t in (batch.image, batch.input_ids, batch.attention_mask))
    return TaskBatch(batch.task, image, ids, mask, batch.target[index])


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, torch.get_num_threads())
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _write(
    module: nn.Module, arguments: Mapping[str, object], shapes: Mapping[str, object], outputs: list[str], path: Path
) -> None:
    """Export with the arguments' names, those inside ``inputs`` included, as the graph's input names."""
    inside = arguments.get("inputs")
    names = list(inside) if isinstance(inside, Mapping) else list(arguments)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations; parity is what decides
        torch.onnx.export(
            module.eval(),
            (),
            path,
            kwargs=dict(arguments),
            dynamo=True,
            dynamic_shapes=dict(shapes),
            input_names=names,
            output_names=outputs,
            external_data=False,
            verbose=False,
        )
