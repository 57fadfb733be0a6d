"""How good a parameter set is on held-out examples, how good the floor is, and samples to look at.

Metrics are over examples, never means of batch means (docs/method.md section 6). It knows the model's outputs and asks
the task's kind what they are worth. It does not know rounds or files.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from tap_core.examples import Example, TaskData, targets_of
from tap_core.foundations.preprocessor import Preprocessor
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel
from tap_core.settings.federation import EvaluationConfig, TaskConfig
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.tasks.decoders import TextDecoder
from tap_core.tasks.generation import generate

BATCH = 64
NEIGHBOURS = 512
DEFAULT = EvaluationConfig()


@dataclass(frozen=True)
class Score:
    """The values of a task's metrics by name, the main one first, and the main one's bootstrap interval of 95 %."""

    values: Mapping[str, float]
    interval: tuple[float, float]

    @property
    def main(self) -> float:
        return next(iter(self.values.values()))


def evaluate(
    model: TapModel,
    parameter_set: ParameterSet,
    task: TaskConfig,
    examples: Sequence[Example],
    accelerator: Accelerator,
    settings: EvaluationConfig = DEFAULT,
) -> Score:
    """All metrics of the task over ``examples``, of which there must be one or more."""
    answered = answers(model, parameter_set, task, examples, accelerator, beams=settings.beams)
    return score(task, answered, _wanted(model.preprocessor, task, examples), settings)


def score(task: TaskConfig, answered: Sequence[Any], wanted: Sequence[Any], settings: EvaluationConfig) -> Score:
    """The metrics of answers against the right ones."""
    kind = task_kind(task.kind)
    metrics = (*kind.metrics, *kind.more_metrics(settings))
    values = {metric.name: metric.value(answered, wanted) for metric in metrics}
    return Score(values, metrics[0].interval(answered, wanted))


def nearest(model: TapModel, task: TaskConfig, data: TaskData, accelerator: Accelerator) -> list[int]:
    """For each test example the place of the training example that is nearest to it on frozen features, of `NEIGHBOURS`
    training examples at most, evenly spaced."""
    count = min(NEIGHBOURS, len(data.train))
    places = [index * len(data.train) // count for index in range(count)]

    def features(examples: Sequence[Example]) -> torch.Tensor:
        return torch.cat([model.frozen_features(b) for _, b in _batches(model, task, examples, accelerator)])

    similar = features(data.test) @ features([data.train[place] for place in places]).T
    return [places[index] for index in similar.argmax(dim=1).tolist()]


def floor(
    preprocessor: Preprocessor,
    task: TaskConfig,
    data: TaskData,
    settings: EvaluationConfig = DEFAULT,
    neighbours: Sequence[int] | None = None,
) -> tuple[str, Score]:
    """The best trivial answer on the test split, and its name (docs/method.md section 11).

    ``neighbours``: as `nearest` gives them; then the answer of the nearest training example is a trivial answer too.
    The trivial answers come from the train split; that the best of them is taken on the test split can only raise the
    floor.
    """
    kind = task_kind(task.kind)
    known = _wanted(preprocessor, task, data.train)
    wanted = _wanted(preprocessor, task, data.test)
    best: tuple[str, Score] | None = None
    trivial = dict(kind.trivial(task, known, data.test))
    if neighbours is not None:
        trivial["nearest neighbour"] = [known[place] for place in neighbours]
    for name, answered in trivial.items():
        trivial_score = score(task, answered, wanted, settings)
        if best is None or kind.metrics[0].better(trivial_score.main, best[1].main):
            best = (name, trivial_score)
    assert best is not None, f"task kind {task.kind} names no trivial answer"
    return best


def answers(
    model: TapModel,
    parameter_set: ParameterSet,
    task: TaskConfig,
    examples: Sequence[Example],
    accelerator: Accelerator,
    *,
    beams: int = 1,
) -> list[Any]:
    """The model's answer to each example, in the form that the kind's metrics compare."""
    kind = task_kind(task.kind)
    answered: list[Any] = []
    for _, batch in _batches(model, task, examples, accelerator):
        if kind.generates_text:
            answered += written(model, parameter_set, batch, accelerator, beams=beams)
        else:
            with torch.no_grad(), accelerator.autocast():
                output = model(batch, parameter_set)
            answered += kind.answers(output.float().cpu().numpy(), task, model.preprocessor.facts.get(task.name, {}))
    return answered


def written(
    model: TapModel, parameter_set: ParameterSet, batch: TaskBatch, accelerator: Accelerator, *, beams: int = 1
) -> list[str]:
    """The texts that a task which generates text answers, one for each example of the batch."""
    decoder = model.decoder(batch.task.name, parameter_set)
    assert isinstance(decoder, TextDecoder)
    preprocessor = model.preprocessor
    with torch.no_grad(), accelerator.autocast():
        tokens = model.encode(batch, parameter_set)
        rows = generate(
            decoder,
            tokens.values,
            tokens.mask,
            model.embeddings,
            start=preprocessor.special.start,
            end=preprocessor.special.end,
            beams=beams,
        )
    return [preprocessor.decode(row) for row in rows]


def shown(preprocessor: Preprocessor, task: TaskConfig, answer: Any) -> str:
    """An answer as text, or as an image in a PNG data URI."""
    what = task_kind(task.kind).shown(answer, task)
    return data_uri(preprocessor.pixels(what)) if isinstance(what, np.ndarray) else str(what)


def samples(
    model: TapModel,
    parameter_set: ParameterSet,
    task: TaskConfig,
    examples: Sequence[Example],
    accelerator: Accelerator,
) -> list[str]:
    """What a parameter set puts out for a few examples, to look at."""
    answered = answers(model, parameter_set, task, examples, accelerator)
    return [shown(model.preprocessor, task, answer) for answer in answered]


def data_uri(pixels: np.ndarray) -> str:
    """A uint8 (height, width, 3) image as a PNG data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _wanted(preprocessor: Preprocessor, task: TaskConfig, examples: Sequence[Example]) -> list[Any]:
    kind = task_kind(task.kind)
    return [kind.wanted(target, preprocessor) for target in targets_of(examples)]


def _batches(
    model: TapModel, task: TaskConfig, examples: Sequence[Example], accelerator: Accelerator
) -> Iterator[tuple[list[Example], TaskBatch]]:
    model.eval()
    for start in range(0, len(examples), BATCH):
        part = [examples[i] for i in range(start, min(start + BATCH, len(examples)))]
        yield part, model.preprocessor.batch(task, part).to(accelerator.device)
