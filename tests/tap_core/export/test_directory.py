"""Exports: parity with torch, other sizes, the model's own answers without torch, and nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from edge_client.inference import Predictor, predict, read_image
from tap_core.errors import TapError
from tap_core.examples import Example
from tap_core.export import directory as export
from tap_core.export.directory import export_task
from tap_core.model.adapters import PARAMETER_SETS
from tap_core.tasks.generation import generate

Make = Callable[..., Any]
TASKS = ("colour", "letters", "redraw", "ask")


class Exported:
    """A model whose sets are no longer at their start, the directory with its exports, and what `export_task` said."""

    def __init__(self, model: Any, directory: Path, worst: dict[str, float]) -> None:
        self.model, self.directory, self.worst = model, directory, worst


@pytest.fixture(scope="module")
def exported(mini_model: Make, mini_examples: Make, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """All exports of this file: one costs ten seconds."""
    model = mini_model(*TASKS)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter_set in PARAMETER_SETS:
            for parameter in model.trainable(parameter_set).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    directory = tmp_path_factory.mktemp("exports")
    count = {"ask": 3}  # examples to compare on; fewer than eight are enough
    worst = {t: export_task(model, t, directory / t, mini_examples(t).test[: count.get(t)]) for t in TASKS}
    return Exported(model.eval(), directory, worst)


def test_every_export_agrees_and_nothing_else_is_left(exported: Exported) -> None:
    assert {path.name for path in exported.directory.iterdir()} == set(TASKS)
    for task, worst in exported.worst.items():
        assert worst < 1e-4
        parity = json.loads((exported.directory / task / "parity.json").read_text())
        assert (parity["max_abs_diff"], parity["n"]) == (worst, 3 if task == "ask" else 8)


@pytest.mark.parametrize("task", ["colour", "letters", "redraw"])
def test_a_graph_agrees_with_torch_at_other_sizes_than_it_was_traced_with(
    exported: Exported, mini_examples: Make, task: str
) -> None:
    model, directory = exported.model, exported.directory / task
    facts = json.loads((directory / "task.json").read_text())
    assert facts["kind"] == model.tasks[task].kind and facts["files"] == ["model.onnx"]
    assert (directory / "tokenizer.json").exists() == (task == "letters")
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    for count in (1, 5):
        batch = model.preprocessor.batch(model.tasks[task], mini_examples(task, seed=9).train[:count])
        named = {"image": batch.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        (given,) = session.run(None, {k: v.numpy() for k, v in named.items() if v is not None})
        with torch.no_grad():
            wanted = model(batch, "personal").numpy()
        np.testing.assert_allclose(given, wanted, atol=1e-4)


def test_a_text_generator_is_an_encoder_and_a_step(exported: Exported) -> None:
    assert {p.name for p in (exported.directory / "ask").iterdir()} == {
        "encoder.onnx",
        "step.onnx",
        "task.json",
        "tokenizer.json",
        "parity.json",
        "README.md",
    }


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A PNG of another size than the model's, and its pixels."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return path, read_image(path)


def in_torch(model: Any, task: str, image: np.ndarray | None, text: str | None, target: Any) -> tuple[Any, np.ndarray]:
    """The personal set's output for one example, as float64."""
    batch = model.preprocessor.batch(model.tasks[task], [Example(image, text, target)])
    with torch.no_grad():
        return batch, model(batch, "personal")[0].double().numpy()


@pytest.mark.parametrize("text", ["a b c", "e f g h e f g h a b c d e f g h a b c d e f g h"])
def test_a_text_short_or_too_long_is_classified_as_the_model_classifies_it(exported: Exported, text: str) -> None:
    model = exported.model
    _, logits = in_torch(model, "letters", None, text, 0)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    result = predict(exported.directory / "letters", text=text)
    assert [result["probabilities"][name] for name in model.tasks["letters"].classes] == pytest.approx(
        expected, abs=1e-4
    )


def test_an_image_is_drawn_as_the_model_draws_it(
    exported: Exported, picture: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, pixels = picture
    _, drawn = in_torch(exported.model, "redraw", pixels, None, pixels)
    predict(exported.directory / "redraw", image=path, output=tmp_path / "drawn.png")
    wanted = exported.model.preprocessor.pixels(drawn).astype(int)
    assert np.abs(read_image(tmp_path / "drawn.png").astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_is_written_as_the_model_writes_it(
    exported: Exported, picture: tuple[Path, np.ndarray], beams: int
) -> None:
    model = exported.model
    path, pixels = picture
    for question in ("what colour is this", "is this red", "a b c d e f g h"):
        batch, _ = in_torch(model, "ask", pixels, question, "red")
        with torch.no_grad():
            tokens, mask, _ = model.encode(batch, "personal")
        decoder, preprocessor = model.decoder("ask", "personal"), model.preprocessor
        ends = {"start": preprocessor.special.start, "end": preprocessor.special.end}
        (expected,) = generate(decoder, tokens, mask, model.embeddings, **ends, beams=beams)
        predictor = Predictor(exported.directory / "ask")
        answer = predictor.write(predictor.inputs(path, question), beams=beams)
        assert list(answer.tokens) == expected
        assert answer.text == preprocessor.decode(expected)


def test_an_export_that_disagrees_is_refused_and_leaves_nothing(
    mini_model: Make, mini_examples: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: Any, batch: Any, directory: Path, parameter_set: str) -> tuple[str, ...]:
        (directory / "model.onnx").write_bytes(b"graph")
        return ("model.onnx",)

    model = mini_model("colour")
    monkeypatch.setattr(export, "write_graphs", write)
    monkeypatch.setattr(export, "difference", lambda *_: float("nan"))
    with pytest.raises(TapError, match="onnxruntime differs from torch by nan; nothing was written"):
        export_task(model, "colour", tmp_path / "colour", mini_examples("colour").test)
    assert list(tmp_path.iterdir()) == []
