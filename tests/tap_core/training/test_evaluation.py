"""Held-out metrics: the floor's exact numbers, means over examples, and which set is measured when."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tap_core.algorithms.base import DeviceState
from tap_core.algorithms.participant import Participant
from tap_core.examples import Example, TaskData
from tap_core.settings.federation import TaskConfig
from tap_core.settings.runtime import Runtime
from tap_core.tasks import task_kind
from tap_core.tasks.image_generation import GENERATED_IMAGE_SIZE
from tap_core.tasks.metrics import macro_f1
from tap_core.training import evaluation
from tap_core.training.evaluation import answers, evaluate, floor, nearest, samples
from tap_core.training.runtime import make_accelerator

Make = Callable[..., Any]
CPU = Runtime(device="cpu", threads=1)
TASKS = ("ask", "colour", "letters", "marks", "redraw", "shade")


def labelled(*targets: int | str | np.ndarray) -> list[Example]:
    return [Example(None, None, target) for target in targets]


def picture(left: int, right: int) -> np.ndarray:
    """An image of the generated size whose halves are of one grey each."""
    pixels = np.full((GENERATED_IMAGE_SIZE, GENERATED_IMAGE_SIZE, 3), left, np.uint8)
    pixels[:, GENERATED_IMAGE_SIZE // 2 :] = right
    return pixels


@pytest.mark.parametrize("kind", ["image_classification", "text_classification"])
def test_the_floor_of_a_classifier_is_the_train_splits_majority_class(mini_model: Make, kind: str) -> None:
    """The test split has another majority, 2, whose constant answer would score 4/8; and 0 is the first class seen."""
    inputs = (kind.split("_")[0],)
    task = TaskConfig(name="t", kind=kind, inputs=inputs, classes=("a", "b", "c"))  # type: ignore[arg-type]
    data = TaskData(labelled(0, 1, 1, 2, 1, 0), labelled(0, 1, 2, 2, 0, 2, 2, 0))
    name, score = floor(mini_model("colour").preprocessor, task, data)
    assert (name, score.main) == ("majority class", 1 / 8)


def test_the_floor_of_an_image_generator_is_the_train_splits_mean_image(mini_model: Make) -> None:
    """In normalised pixels black is -2, white 2 and 51 is -1.2: exact numbers by hand, not the test split's mean."""
    preprocessor = mini_model("redraw").preprocessor
    task = TaskConfig(name="t", kind="image_generation", inputs=("image",))
    black, white = picture(0, 0), picture(255, 255)
    data = TaskData(labelled(black, white, black), labelled(white, picture(51, 51)))
    mean = (-2 + 2 - 2) / 3
    assert floor(preprocessor, task, data)[1].main == pytest.approx(
        ((2 - mean) ** 2 + (-1.2 - mean) ** 2) / 2, rel=1e-6
    )
    halves = picture(0, 255)  # a mean image keeps its halves; a mean grey would score 4
    assert floor(preprocessor, task, TaskData(labelled(halves, halves), labelled(halves)))[1].main == 0


@pytest.mark.parametrize(
    ("train", "test", "best", "value"),
    [
        (["a b", "x", "a c", "a d", "x"], ["x", "X", "q"], "most frequent answer", 2 / 3),  # the bag would be "a x"
        # "the" is in every answer, and no answer comes twice
        (["the cat", "the dog", "the owl"], ["the fox", "the hen"], "constant bag of words", 2 / 3),
        (["one", "two", "three"], ["a b c", "d e f"], "the input", 1.0),
    ],
)
def test_the_floor_of_a_text_generator_is_the_best_of_three_trivial_answers(
    mini_model: Make, train: list[str], test: list[str], best: str, value: float
) -> None:
    task = TaskConfig(name="t", kind="text_generation", inputs=("text",))
    copied = best == "the input"
    rows = [Example(None, target if copied else "x y z", target) for target in test]
    name, score = floor(mini_model("ask").preprocessor, task, TaskData(labelled(*train), rows))
    assert (name, score.main) == (best, pytest.approx(value))


def test_the_floor_of_a_regression_is_the_train_splits_mean_or_median(mini_model: Make) -> None:
    task = TaskConfig(name="t", kind="regression", inputs=("text",))
    data = TaskData(labelled(0.0, 0.0, 9.0), labelled(0.0, 1.0))
    name, score = floor(mini_model("ask").preprocessor, task, data)
    assert name == "median" and score.values == {"r2": pytest.approx(-1.0), "mae": 0.5}


def test_the_floor_of_multilabel_is_the_best_constant_set(mini_model: Make) -> None:
    task = TaskConfig(name="t", kind="multilabel", inputs=("text",), classes=("a", "b", "c"))
    data = TaskData(labelled((0,), (0, 1), (0, 1), ()), labelled((0,), (0, 2)))
    name, score = floor(mini_model("ask").preprocessor, task, data)
    assert name == "every class" and score.main == pytest.approx((1 + 0 + 2 / 3) / 3)


@pytest.mark.parametrize("name", TASKS)
def test_a_metric_is_a_mean_over_examples_whatever_the_batches(
    mini_model: Make, mini_examples: Make, randomise: Make, name: str
) -> None:
    """A full batch that the model gets right and an uneven last one that it gets wrong: no mean of batch means."""
    model = mini_model(name)
    randomise(model, "federated")
    task, accelerator = model.tasks[name], make_accelerator(CPU, 1)
    right, wrong = evaluation.BATCH, 6
    examples = mini_examples(name, train=0, test=right + wrong).test
    if task.kind == "image_generation":
        targets = [picture(128, 128)] * right + [picture(0, 0)] * wrong
    elif task.kind == "text_generation":
        targets = [*samples(model, "federated", task, examples[:right], accelerator), *["no such answer"] * wrong]
    elif task.kind == "multilabel":
        every = range(len(task.classes))
        given = answers(model, "federated", task, examples, accelerator)
        targets = [*given[:right], *(tuple(c for c in every if c not in one) for one in given[right:])]
    elif task.kind == "regression":
        model.preprocessor.facts["shade"] = {"mean": 5.0, "std": 2.0}
        given = answers(model, "federated", task, examples, accelerator)
        targets = [*given[:right], *(number + 7 for number in given[right:])]
    else:
        classes = [task.classes.index(c) for c in samples(model, "federated", task, examples, accelerator)]
        targets = [*classes[:right], *((c + 1) % len(task.classes) for c in classes[right:])]
    examples = [replace(e, target=target) for e, target in zip(examples, targets, strict=True)]

    def measured(some: list[Example]) -> float:
        return evaluate(model, "federated", task, some, accelerator).values[metric]

    metric = {"marks": "macro_f1", "shade": "mae"}.get(name) or task_kind(task.kind).metrics[0].name
    if name == "marks":  # no mean over examples: every one but the six would be right
        assert measured(examples) == macro_f1(given, targets) < 1 == measured(examples[:right])
        return
    whole, alone = measured(examples), [measured([e]) for e in examples]
    assert whole == pytest.approx(np.mean(alone), rel=1e-5)
    if task.kind == "regression":
        assert whole == pytest.approx(7 * wrong / (right + wrong), rel=1e-6)
    elif task.kind != "image_generation":
        assert whole == pytest.approx(right / (right + wrong), rel=1e-12)
    of_batches = (measured(examples[:right]) + measured(examples[right:])) / 2
    assert abs(whole - of_batches) > 0.1  # the two would not be told apart otherwise


def test_evaluation_is_of_the_named_set_without_dropout(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    model = mini_model("redraw", lora={"dropout": 0.9})
    randomise(model, "personal")
    task, accelerator, test = model.tasks["redraw"], make_accelerator(CPU, 1), mini_examples("redraw").test
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model.train()
        scores.append(
            [
                evaluate(model, parameter_set, task, test, accelerator).main
                for parameter_set in ("federated", "personal")
            ]
        )
    assert scores[0] == scores[1] and scores[0][0] != scores[0][1]


def test_finish_measures_the_received_set_and_the_incoming_personal_set_before_stage_2(
    mini_config: Make, mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    """The teacher's training overwrites the received set, so a later measurement would be of another model."""
    config = mini_config(algorithm={"distillation": {"steps": 4, "learning_rate": 3e-2}})
    data = {name: mini_examples(name) for name in TASKS}
    source, accelerator = mini_model(), make_accelerator(CPU, 1)
    randomise(source, "federated", seed=1)
    randomise(source, "personal", seed=2)
    received, personal = source.state("federated"), source.state("personal")

    def scores(model: Any, parameter_set: str) -> dict[str, float]:
        for n in TASKS:
            model.preprocessor.fit(model.tasks[n], data[n].train)
        return {n: evaluate(model, parameter_set, model.tasks[n], data[n].test, accelerator).main for n in TASKS}

    wanted = {"federated": scores(source, "federated"), "stage1": scores(source, "personal")}
    device = Participant(config, "d", mini_model(), data, CPU)
    outcome = device.finish(received, DeviceState(2, personal, {}, {}))
    wanted["personal"] = scores(device.model, "personal")
    found = {key: {n: getattr(outcome.results[n], key) for n in TASKS} for key in wanted}
    assert found == wanted
    assert len({*(wanted[key]["redraw"] for key in wanted), scores(device.model, "federated")["redraw"]}) == 4
    for name in TASKS:
        shown = [row["federated"] for row in outcome.samples[name]]
        places = [index * 8 // 6 for index in range(6)]
        some = [data[name].test[index] for index in places]
        assert shown == samples(source, "federated", source.tasks[name], some, accelerator)
        written = source.tasks[name].kind == "text_generation"
        near = nearest(source, source.tasks[name], data[name], accelerator) if written else None
        best, score = floor(source.preprocessor, source.tasks[name], data[name], neighbours=near)
        assert (outcome.results[name].floor_answer, outcome.results[name].floor) == (best, score.main)


def test_a_device_that_never_took_part_starts_stage_2_from_the_received_set(
    mini_config: Make, mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    source = mini_model("redraw")
    randomise(source, "federated")
    device = Participant(mini_config(), "d", mini_model("redraw"), {"redraw": mini_examples("redraw")}, CPU)
    result = device.finish(source.state("federated"), DeviceState.initial(("redraw",))).results["redraw"]
    assert result.stage1 == result.federated != result.personal


def test_the_nearest_training_example_is_that_on_frozen_features(
    mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    """Copies of training examples find themselves, whatever the adapters are, among examples of other colours."""
    model = mini_model("ask")
    randomise(model, "federated")
    randomise(model, "personal")
    train = mini_examples("ask").train
    data = TaskData(train, [train[3], train[11], train[0]])
    assert nearest(model, model.tasks["ask"], data, make_accelerator(CPU, 1)) == [3, 11, 0]
    name, score = floor(model.preprocessor, model.tasks["ask"], data, neighbours=[3, 11, 0])
    assert (name, score.main) == ("nearest neighbour", 1.0)
