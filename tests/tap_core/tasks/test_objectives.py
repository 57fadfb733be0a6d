"""Losses, divergences and metrics: exact numbers and independence of the batch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tap_core.settings.federation import TaskConfig
from tap_core.tasks.batch import IGNORED, TaskBatch
from tap_core.tasks.objectives import divergences, hits, losses, token_f1

LABEL = TaskConfig(name="label", kind="image_classification", inputs=("image",), classes=("a", "b", "c"))
WRITE = TaskConfig(name="write", kind="text_generation", inputs=("text",))
DRAW = TaskConfig(name="draw", kind="image_generation", inputs=("image",))


def batch(task: TaskConfig, target: torch.Tensor) -> TaskBatch:
    return TaskBatch(task, None, None, None, target)


def test_text_loss_is_the_mean_over_an_examples_own_words() -> None:
    target = torch.tensor([[0, 1, 2, IGNORED], [0, 1, IGNORED, IGNORED]])
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = 2.0
    wanted = (math.log(4) + (math.log(3 + math.e**2) - 2)) / 2
    assert losses(logits, batch(WRITE, target)).tolist() == pytest.approx([wanted, math.log(4)])


def test_trap_10_a_loss_does_not_depend_on_the_batch_around_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 7, generator=generator)
    target = torch.randint(0, 7, (6, 6), generator=generator)
    target[1, 3:] = IGNORED
    together = losses(logits, batch(WRITE, target))
    alone = torch.cat([losses(logits[i : i + 1], batch(WRITE, target[i : i + 1])) for i in range(6)])
    torch.testing.assert_close(together, alone)


def test_trap_10_a_history_is_a_mean_per_example_whatever_the_tasks_share(
    mini_model: Callable[..., Any], mini_examples: Callable[..., Any]
) -> None:
    """At a learning rate of nearly nothing the history equals the mean loss over the rows that were drawn."""
    from tap_core.settings.federation import TrainingConfig
    from tap_core.training.batches import mixed_batches
    from tap_core.training.loop import Phase, train
    from tap_core.training.runtime import Runtime, make_accelerator

    model = mini_model("colour", "letters", lora={"dropout": 0.0})
    data = {"colour": mini_examples("colour").train, "letters": mini_examples("letters").train}
    accelerator = make_accelerator(Runtime(device="cpu", threads=1), 1)
    for batch_size in (2, 7):
        settings = TrainingConfig(steps=2, batch_size=batch_size)
        history = train(model, "federated", data, settings, Phase("p", 9, 2, 1e-12), accelerator)
        stream = mixed_batches(data, batch_size, 9)
        drawn = [next(stream), next(stream)]
        model.eval()
        for name in data:
            rows = [row for step in drawn for row in step[name]]
            rows_batch = model.preprocessor.batch(model.tasks[name], rows)
            wanted = losses(model(rows_batch, "federated"), rows_batch).mean().item()
            assert history[name] == pytest.approx(wanted, rel=1e-4)


def test_divergence_is_zero_for_equal_outputs_and_scaled_by_the_temperature_squared() -> None:
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    target = torch.tensor([0])
    assert divergences(teacher, teacher, batch(LABEL, target), 2.0).item() == pytest.approx(0, abs=1e-6)
    p, q = F.softmax(teacher / 2, -1), F.softmax(student / 2, -1)
    wanted = 4 * (p * (p / q).log()).sum().item()
    assert divergences(student, teacher, batch(LABEL, target), 2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_divergence_of_text_ignores_padding_and_of_images_is_a_squared_difference() -> None:
    target = torch.tensor([[0, 1, IGNORED]])
    student, teacher = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    teacher[0, 1] = torch.tensor([9.0, 0, 0])  # only where there is padding
    assert divergences(student, teacher, batch(WRITE, target), 1.0).item() == 0
    image = torch.zeros(2, 3, 4, 4)
    assert divergences(image + 2, image, batch(DRAW, image), 3.0).tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Red heart", "red heart", 1.0),
        ("heart", "red heart", 2 / 3),
        ("blue", "red heart", 0.0),
        ("", "red", 0.0),
        ("", "", 1.0),
        ("a a b", "a b b", 2 / 3),
    ],
)
def test_token_f1(answer: str, reference: str, score: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(score)


def test_hits() -> None:
    assert hits(torch.tensor([[0.0, 1], [2, 1]]), torch.tensor([1, 1])).tolist() == [1.0, 0.0]
