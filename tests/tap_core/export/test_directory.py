"""Exports: parity with torch, other batch sizes and lengths, and nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tap_core.errors import TapError
from tap_core.export import directory as export
from tap_core.export.directory import export_task

Make = Callable[..., Any]


@pytest.mark.parametrize("task", ["colour", "letters", "redraw"])
def test_a_graph_agrees_with_torch_at_other_sizes_than_it_was_traced_with(
    mini_model: Make, mini_examples: Make, randomise: Make, tmp_path: Path, task: str
) -> None:
    model = mini_model(task, "ask")
    randomise(model, "personal")
    worst = export_task(model, task, tmp_path / task, mini_examples(task).test)
    assert worst < 1e-4
    facts = json.loads((tmp_path / task / "task.json").read_text())
    assert facts["kind"] == model.tasks[task].kind and facts["files"] == ["model.onnx"]
    assert json.loads((tmp_path / task / "parity.json").read_text())["max_abs_diff"] == worst
    assert (tmp_path / task / "tokenizer.json").exists() == (task == "letters")
    session = onnxruntime.InferenceSession(tmp_path / task / "model.onnx")
    model.eval()
    for count in (1, 5):
        batch = model.preprocessor.batch(model.tasks[task], mini_examples(task, seed=9).train[:count])
        named = {"image": batch.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        (given,) = session.run(None, {k: v.numpy() for k, v in named.items() if v is not None})
        with torch.no_grad():
            wanted = model(batch, "personal").numpy()
        np.testing.assert_allclose(given, wanted, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [task]


def test_a_text_generator_is_an_encoder_and_a_step(
    mini_model: Make, mini_examples: Make, randomise: Make, tmp_path: Path
) -> None:
    model = mini_model("ask")
    randomise(model, "personal")
    assert export_task(model, "ask", tmp_path / "ask", mini_examples("ask").test[:3]) < 1e-4
    assert {p.name for p in (tmp_path / "ask").iterdir()} == {
        "encoder.onnx",
        "step.onnx",
        "task.json",
        "tokenizer.json",
        "parity.json",
        "README.md",
    }


def test_an_export_that_disagrees_is_refused_and_leaves_nothing(
    mini_model: Make, mini_examples: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mini_model("colour")
    monkeypatch.setattr(export, "difference", lambda *_: float("nan"))
    with pytest.raises(TapError, match="onnxruntime differs from torch by nan; nothing was written"):
        export_task(model, "colour", tmp_path / "colour", mini_examples("colour").test)
    assert list(tmp_path.iterdir()) == []
