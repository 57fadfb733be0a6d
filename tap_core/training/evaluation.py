"""How good a parameter set is on held-out examples, how good the floor is, and samples to look at.

Metrics are means over examples (METHOD.md section 6). It knows the model's outputs and the kinds' metrics. It does not
know rounds or files.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from tap_core.examples import Example, TaskData
from tap_core.foundations.preprocessor import Preprocessor
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel
from tap_core.settings.federation import TaskConfig
from tap_core.tasks.batch import GENERATED_IMAGE_SIZE, TaskBatch
from tap_core.tasks.decoders import TextDecoder
from tap_core.tasks.generation import generate
from tap_core.tasks.objectives import hits, squared_error, token_f1

BATCH = 64


def evaluate(
    model: TapModel, which: ParameterSet, task: TaskConfig, examples: Sequence[Example], accelerator: Accelerator
) -> float:
    """The task's metric over ``examples``: accuracy, mean squared error of normalised pixels, or mean token F1."""
    total = 0.0
    for part, batch in _batches(model, task, examples, accelerator):
        if task.kind == "text_generation":
            answers = answer(model, which, batch, accelerator)
            total += sum(token_f1(given, str(e.target)) for given, e in zip(answers, part, strict=True))
        else:
            score = squared_error if task.kind == "image_generation" else hits
            total += float(score(_output(model, which, batch, accelerator), batch.target).double().sum())
    return total / len(examples)


def floor(preprocessor: Preprocessor, task: TaskConfig, data: TaskData) -> float:
    """The metric of the best constant answer: the train split's majority class, mean image or most frequent answer."""
    if task.kind == "image_generation":
        train = [preprocessor.image(np.asarray(e.target), GENERATED_IMAGE_SIZE) for e in data.train]
        mean = np.mean(train, axis=0, dtype=np.float64)
        test = (preprocessor.image(np.asarray(e.target), GENERATED_IMAGE_SIZE) for e in data.test)
        return float(np.mean([np.square(image - mean).mean() for image in test]))
    commonest = Counter(e.target for e in data.train).most_common(1)[0][0]  # type: ignore[misc]
    if task.kind == "text_generation":
        return float(np.mean([token_f1(str(commonest), str(e.target)) for e in data.test]))
    return float(np.mean([e.target == commonest for e in data.test]))


def answer(model: TapModel, which: ParameterSet, batch: TaskBatch, accelerator: Accelerator) -> list[str]:
    """Greedy answers of a text-generation task, one per example of the batch."""
    decoder = model.decoder(batch.task.name, which)
    assert isinstance(decoder, TextDecoder)
    preprocessor = model.preprocessor
    with torch.no_grad(), accelerator.autocast():
        tokens, mask = model.encode(batch, which)
        rows = generate(
            decoder,
            tokens,
            mask,
            model.embeddings,
            start=preprocessor.special.start,
            end=preprocessor.special.end,
        )
    return [preprocessor.decode(row) for row in rows]


def samples(
    model: TapModel, which: ParameterSet, task: TaskConfig, examples: Sequence[Example], accelerator: Accelerator
) -> list[str]:
    """What a parameter set puts out for a few examples: class names, answers, or images as PNG data URIs."""
    shown: list[str] = []
    for _, batch in _batches(model, task, examples, accelerator):
        if task.kind == "text_generation":
            shown += answer(model, which, batch, accelerator)
        elif task.kind == "image_generation":
            images = _output(model, which, batch, accelerator).float().cpu().numpy()
            shown += [data_uri(model.preprocessor.pixels(image)) for image in images]
        else:
            indices = _output(model, which, batch, accelerator).argmax(dim=-1).tolist()
            shown += [task.classes[index] for index in indices]
    return shown


def data_uri(pixels: np.ndarray) -> str:
    """A uint8 (height, width, 3) image as a PNG data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _output(model: TapModel, which: ParameterSet, batch: TaskBatch, accelerator: Accelerator) -> torch.Tensor:
    with torch.no_grad(), accelerator.autocast():
        output: torch.Tensor = model(batch, which)
    return output


def _batches(
    model: TapModel, task: TaskConfig, examples: Sequence[Example], accelerator: Accelerator
) -> Iterator[tuple[list[Example], TaskBatch]]:
    model.eval()
    for start in range(0, len(examples), BATCH):
        part = [examples[i] for i in range(start, min(start + BATCH, len(examples)))]
        yield part, model.preprocessor.batch(task, part).to(accelerator.device)
