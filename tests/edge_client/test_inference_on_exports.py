"""Real exports of miniature models, run from files without torch: the same answers as the model they were made from."""

import numpy as np
import pytest
import torch
from PIL import Image

from edge_client.inference import Predictor, predict, read_image
from tap_core.examples import Example
from tap_core.export.directory import export_task
from tap_core.foundations import load_foundation
from tap_core.model.adapters import PARAMETER_SETS
from tap_core.model.tap_model import build_model
from tap_core.tasks.generation import generate


@pytest.fixture(scope="module")
def exported(mini_config, mini_examples, tmp_path_factory):
    """A model whose personal set is no longer at its start, and the directory of the exports of three tasks."""
    config = mini_config()
    tasks = config.tasks_named(["ask", "letters", "redraw"])
    model = build_model(config, tasks, load_foundation(config.foundation))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter_set in PARAMETER_SETS:
            for parameter in model.trainable(parameter_set).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    directory = tmp_path_factory.mktemp("exports")
    for task in tasks:
        export_task(model, task.name, directory / task.name, mini_examples(task.name).test)
    return model.eval(), directory


@pytest.fixture
def picture(tmp_path):
    """A PNG of another size than the model's, and its pixels."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return path, read_image(path)


def in_torch(model, task_name, image, text, target):
    """The personal set's output for one example, as float64."""
    batch = model.preprocessor.batch(model.tasks[task_name], [Example(image, text, target)])
    with torch.no_grad():
        return batch, model(batch, "personal")[0].double().numpy()


@pytest.mark.parametrize("text", ["a b c", "e f g h e f g h a b c d e f g h a b c d e f g h"])
def test_a_text_short_or_too_long_is_classified_as_the_model_classifies_it(exported, text):
    model, directory = exported
    _, logits = in_torch(model, "letters", None, text, 0)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    result = predict(directory / "letters", text=text)
    assert [result["probabilities"][name] for name in model.tasks["letters"].classes] == pytest.approx(
        expected, abs=1e-4
    )


def test_an_image_is_drawn_as_the_model_draws_it(exported, picture, tmp_path):
    model, directory = exported
    path, pixels = picture
    _, drawn = in_torch(model, "redraw", pixels, None, pixels)
    predict(directory / "redraw", image=path, output=tmp_path / "drawn.png")
    difference = read_image(tmp_path / "drawn.png").astype(int) - model.preprocessor.pixels(drawn).astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_is_written_as_the_model_writes_it(exported, picture, beams):
    model, directory = exported
    path, pixels = picture
    for question in ("what colour is this", "is this red", "a b c d e f g h"):
        batch, _ = in_torch(model, "ask", pixels, question, "red")
        with torch.no_grad():
            tokens, mask, _ = model.encode(batch, "personal")
        decoder, preprocessor = model.decoder("ask", "personal"), model.preprocessor
        ends = {"start": preprocessor.special.start, "end": preprocessor.special.end}
        (expected,) = generate(decoder, tokens, mask, model.embeddings, **ends, beams=beams)
        predictor = Predictor(directory / "ask")
        answer = predictor.write(predictor.inputs(path, question), beams=beams)
        assert list(answer.tokens) == expected
        assert answer.text == preprocessor.decode(expected)
