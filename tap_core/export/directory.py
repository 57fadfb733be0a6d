"""One task's personal model as a directory for applications: graphs, preprocessing, labels, card and parity report.

The directory is all that inference needs; docs/device.md documents its form. It knows the model; it does not know
rounds, devices' state or who asks.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tap_core.errors import TapError
from tap_core.examples import Example
from tap_core.export.graphs import difference, write_graphs
from tap_core.files import new_directory
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel
from tap_core.names import TaskName
from tap_core.settings.federation import TaskConfig
from tap_core.tasks import task_kind

TOLERANCE = 1e-3
"""The largest difference between torch's and onnxruntime's outputs with which an export is accepted."""

PARITY_EXAMPLES = 8


def export_task(
    model: TapModel,
    task_name: TaskName,
    directory: Path,
    examples: Sequence[Example],
    parameter_set: ParameterSet = "personal",
) -> float:
    """Write the export of one task: graphs, preprocessing, labels, card and parity report.

    The model is moved to the CPU: a GPU may round its products (TF32), and may have no room for a second model.

    Args:
        model: The device's model.
        task_name: One of its tasks.
        directory: Where to write. It appears only when it is complete and the two agree; an earlier export is replaced.
        examples: At least one, to compare torch and onnxruntime on; the first eight are taken.
        parameter_set: The set whose values are exported.

    Returns:
        The largest absolute difference between the outputs of torch and onnxruntime.

    Raises:
        TapError: They differ by more than ``TOLERANCE``.
    """
    model.to(torch.device("cpu"))
    task = model.tasks[task_name]
    batch = model.preprocessor.batch(task, [examples[i] for i in range(min(PARITY_EXAMPLES, len(examples)))])
    with new_directory(directory) as partial:
        files = write_graphs(model, batch, partial, parameter_set)
        worst = difference(model, batch, partial, parameter_set)
        if not worst <= TOLERANCE:
            raise TapError(f"export of {task_name}: onnxruntime differs from torch by {worst:.2g}; nothing was written")
        _write_facts(model, task, partial, files)
        report = {"max_abs_diff": worst, "n": batch.size, "tolerance": TOLERANCE}
        _write_json(partial / "parity.json", report)
        (partial / "README.md").write_text(_card(model, task, worst, batch.size), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
    return worst


def _write_facts(model: TapModel, task: TaskConfig, directory: Path, files: Sequence[str]) -> None:
    preprocessor = model.preprocessor
    _write_json(
        directory / "task.json",
        {
            "name": task.name,
            "kind": task.kind,
            "inputs": list(task.inputs),
            "classes": list(task.classes),
            "length": task.length,
            "facts": dict(preprocessor.facts.get(task.name, {})),
            "image": {
                "size": preprocessor.image_size,
                "mean": preprocessor.mean.ravel().tolist(),
                "std": preprocessor.std.ravel().tolist(),
            },
            "text_length": preprocessor.text_length,
            "pad_token_id": preprocessor.special.pad,
            "cls_token_id": preprocessor.special.start,
            "sep_token_id": preprocessor.special.end,
            "files": list(files),
        },
    )
    if "text" in task.inputs or task_kind(task.kind).generates_text:
        preprocessor.tokenizer.save(str(directory / "tokenizer.json"))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _card(model: TapModel, task: TaskConfig, worst: float, count: int) -> str:
    classes = f"\n- classes: {', '.join(task.classes)}" if task.classes else ""
    return f"""---
library_name: onnx
tags: [tap-edge, {task.kind}]
---
# {task.name}

A personal model of federation `{model.config.name}`, made by tap-edge with TAP (arXiv 2509.26524).

- kind: {task.kind}
- inputs: {", ".join(task.inputs)}{classes}
- foundation: {model.config.foundation} (frozen; the adapters are merged into its weights)
- parity: onnxruntime and torch differ by at most {worst:.2g} over {count} examples (`parity.json`)

It was fitted to one device's own data and may hold traces of it: share it as you would share that data.
Run it with `tap-client predict DIRECTORY --image FILE` or `--text TEXT`; it needs onnxruntime, tokenizers and pillow.
"""
