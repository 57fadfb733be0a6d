"""Tasks across modalities beside visual question answering: captioning, text from text, and images from text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tap_core.components import owned_components
from tap_core.examples import Example
from tap_core.export.directory import TOLERANCE, export_task
from tap_core.settings.federation import TrainingConfig
from tap_core.settings.runtime import Runtime
from tap_core.training.loop import TrainingPhase, train
from tap_core.training.runtime import make_accelerator

Make = Callable[..., Any]
TASKS: dict[str, dict[str, Any]] = {
    "caption": {"kind": "text_generation", "inputs": ["image"], "length": 5},
    "reply": {"kind": "text_generation", "inputs": ["text"], "length": 5},
    "draw": {"kind": "image_generation", "inputs": ["text"]},
}
INPUTS = {"caption": {"image"}, "reply": {"input_ids", "attention_mask"}, "draw": {"input_ids", "attention_mask"}}


@pytest.fixture
def build(mini_model: Make) -> Make:
    """A model of the three tasks, or of those named."""

    def make(*tasks: str) -> Any:
        return mini_model(*tasks, tasks=TASKS)

    return make


@pytest.fixture
def examples(mini_examples: Make) -> Make:
    """Twelve examples of a task: the colour of an image, the last of some letters, or the image that a text names."""

    def make(task: str) -> list[Example]:
        asked = mini_examples("ask", train=12).train
        if task == "caption":
            return [Example(e.image, None, e.target) for e in asked]
        if task == "draw":
            return [Example(None, f"{e.target} {'a b' * (i % 2)}", e.image) for i, e in enumerate(asked)]
        return [Example(None, e.text, e.text.split()[-1]) for e in mini_examples("letters", train=12).train]

    return make


def used_by_hand(task: str) -> set[str]:
    """docs/method.md section 3, written out a second time, so that the one map is checked against the page."""
    m, kind = TASKS[task]["inputs"][0], TASKS[task]["kind"]
    names = {f"encoder/{m}", f"decoder/{task}", f"mote/attention/{m}", "mote/attention/shared"}
    names |= {f"mome/attention/{kind}", "mome/attention/shared"}
    for a in (m, "shared"):
        for b in (kind, "shared"):
            names |= {f"mote/expert/{a}/{b}", f"mome/expert/{b}/{a}"}
    return names


@pytest.mark.parametrize("task", TASKS)
def test_a_training_step_changes_exactly_the_components_of_its_task(build: Make, examples: Make, task: str) -> None:
    """On a device that owns the other tasks' components too."""
    model = build()
    before = {parameter_set: model.state(parameter_set) for parameter_set in ("federated", "personal")}
    accelerator = make_accelerator(Runtime(device="cpu", threads=1), 1)
    phase = TrainingPhase("p", 1, 1, 1e-2)
    train(model, "federated", {task: examples(task)}, TrainingConfig(batch_size=6), phase, accelerator)
    changed = {
        parameter_set: {c for c, g in model.state(parameter_set).items() if any((g[k] != group[c][k]).any() for k in g)}
        for parameter_set, group in before.items()
    }
    assert changed == {"federated": used_by_hand(task), "personal": set()}
    assert set(owned_components([model.tasks[task]])) == used_by_hand(task) < set(model.components)


@pytest.mark.parametrize("task", TASKS)
def test_trap_2_the_output_changes_when_the_input_changes(
    build: Make, examples: Make, randomise: Make, task: str
) -> None:
    """Every row's output moves with its own input, the target staying the same, and no other row's does."""
    model = build(task).eval()
    randomise(model, "personal")
    rows = examples(task)[:4]
    batch = model.preprocessor.batch(model.tasks[task], rows)
    with torch.no_grad():
        before = model(batch, "personal")
        if task == "caption":
            batch.image[1:].neg_()
        else:
            word = batch.input_ids[1:, 1]
            word.copy_(torch.where(word == 7, 8, 7))
        after = model(batch, "personal")
    moved = (before - after).abs().amax(dim=tuple(range(1, before.ndim)))
    assert moved[1:].min() > 1e-4 and moved[0] < 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_an_export_agrees_with_torch(build: Make, examples: Make, randomise: Make, tmp_path: Path, task: str) -> None:
    model = build(task)
    randomise(model, "personal")
    rows, directory = examples(task), tmp_path / task
    assert export_task(model, task, directory, rows[:3]) <= TOLERANCE
    facts = json.loads((directory / "task.json").read_text())
    assert facts["inputs"] == TASKS[task]["inputs"] and (directory / "tokenizer.json").exists()
    session = onnxruntime.InferenceSession(directory / facts["files"][0])
    assert {given.name for given in session.get_inputs()} == INPUTS[task]
    batch = model.preprocessor.batch(model.tasks[task], rows[3:8])  # other rows, another count and another length
    named = {"image": batch.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    given, *_ = session.run(None, {k: v.numpy() for k, v in named.items() if v is not None})
    with torch.no_grad():
        wanted = model(batch, "personal") if task == "draw" else model.encode(batch, "personal")[0]
    np.testing.assert_allclose(given, wanted.numpy(), atol=TOLERANCE)
