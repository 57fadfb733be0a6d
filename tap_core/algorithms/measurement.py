"""What a device's parameter sets are worth on its test split, beside the best trivial answers, and outputs to look at.

A set of values is measured once: algorithms that end at the same one, or compare with the same global model, share what
was found. It does not know rounds, algorithms or how sets came about.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate import Accelerator

from tap_core.components import components_of_task
from tap_core.examples import Example, TaskData
from tap_core.model.adapters import ParameterSet
from tap_core.model.tap_model import TapModel
from tap_core.names import TaskName
from tap_core.settings.federation import EvaluationConfig, TaskConfig
from tap_core.tasks import task_kind
from tap_core.training.evaluation import Score, data_uri, evaluate, floor, nearest, samples, shown

SAMPLES = 6
"""Test examples per task whose outputs are kept to look at."""


@dataclass(frozen=True)
class TaskResult:
    """A task's main metric on the device's test split: the best trivial answer (named), the global model, and x_i
    before and after stage 2. ``intervals``: of 95 %, by bootstrap over the test examples. ``metrics``: every metric of
    the kind, by name, with the same four values."""

    kind: str
    metric: str
    higher_is_better: bool
    n_test: int
    floor: float
    federated: float
    stage1: float
    personal: float
    floor_answer: str = ""
    selected: str = ""
    """The set that the task selected in place of x_i, if it did."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A set's score on a task, and what it puts out for some of its examples."""

    score: Score
    outputs: list[str]


class Measurement:
    """A device's test splits and what was found on them."""

    def __init__(self, model: TapModel, data: Mapping[TaskName, TaskData], settings: EvaluationConfig) -> None:
        self._model, self._data, self._settings = model, data, settings
        self._chosen = {name: _spread(of.test, SAMPLES) for name, of in data.items()}
        self._found: dict[tuple[TaskName, bytes], Measured] = {}
        self._floors: dict[TaskName, tuple[str, Score]] = {}

    def of(self, parameter_set: ParameterSet, task: TaskConfig, accelerator: Accelerator) -> Measured:
        """What the values that a set holds now are worth on a task, which must have test examples."""
        key = task.name, self._digest(parameter_set, task)
        if key not in self._found:
            test, chosen = self._data[task.name].test, self._chosen[task.name]
            self._found[key] = Measured(
                evaluate(self._model, parameter_set, task, test, accelerator, self._settings),
                samples(self._model, parameter_set, task, chosen, accelerator),
            )
        return self._found[key]

    def result(
        self, task: TaskConfig, sets: Mapping[str, Measured], accelerator: Accelerator, selected: str
    ) -> TaskResult:
        """The sets' scores beside the floor. ``sets``: federated, stage1 and personal."""
        kind = task_kind(task.kind)
        main = kind.metrics[0]
        answer, constant = self._floor(task, accelerator)
        every = {"floor": constant, **{name: found.score for name, found in sets.items()}}
        return TaskResult(
            task.kind,
            main.name,
            main.higher_is_better,
            n_test=len(self._data[task.name].test),
            **{name: score.main for name, score in every.items()},
            floor_answer=answer,
            selected=selected,
            intervals={name: score.interval for name, score in every.items()},
            metrics={
                metric: {name: score.values[metric] for name, score in every.items()} for metric in constant.values
            },
        )

    def shown(self, task: TaskConfig, sets: Mapping[str, Measured]) -> list[dict[str, Any]]:
        """Some test examples: input (text, or image as a data URI, or both), target, federated and personal output."""
        outputs = zip(sets["federated"].outputs, sets["personal"].outputs, strict=True)
        return [
            {**self._shown_example(task, example), "federated": federated, "personal": personal}
            for example, (federated, personal) in zip(self._chosen[task.name], outputs, strict=True)
        ]

    def _digest(self, parameter_set: ParameterSet, task: TaskConfig) -> bytes:
        digest = hashlib.blake2b()
        for group in self._model.state(parameter_set, components_of_task(task)).values():
            for values in group.values():
                digest.update(values.tobytes())
        return digest.digest()

    def _floor(self, task: TaskConfig, accelerator: Accelerator) -> tuple[str, Score]:
        if task.name not in self._floors:
            data = self._data[task.name]
            writes = task_kind(task.kind).generates_text
            neighbours = nearest(self._model, task, data, accelerator) if writes else None
            self._floors[task.name] = floor(self._model.preprocessor, task, data, self._settings, neighbours)
        return self._floors[task.name]

    def _shown_example(self, task: TaskConfig, example: Example) -> dict[str, Any]:
        preprocessor, target = self._model.preprocessor, example.target
        inputs = {"image": None if example.image is None else data_uri(example.image), "text": example.text}
        return {
            "input": {key: value for key, value in inputs.items() if value is not None},
            "target": data_uri(target) if isinstance(target, np.ndarray) else shown(preprocessor, task, target),
        }


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most ``count`` examples, evenly spaced: files often come sorted by class."""
    count = min(count, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]
