"""Losses and divergences of every kind: exact numbers, and independence of the batch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tap_core.tasks import KINDS, task_kind
from tap_core.tasks.text_generation import IGNORED

CLASS, MARKS, NUMBER, DRAW, WRITE = (
    task_kind(name)
    for name in ("image_classification", "multilabel", "regression", "image_generation", "text_generation")
)


def test_text_loss_is_the_mean_over_an_examples_own_words() -> None:
    target = torch.tensor([[0, 1, 2, IGNORED], [0, 1, IGNORED, IGNORED]])
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = 2.0
    wanted = (math.log(4) + (math.log(3 + math.e**2) - 2)) / 2
    assert WRITE.loss(logits, target).tolist() == pytest.approx([wanted, math.log(4)])


def test_trap_10_a_loss_does_not_depend_on_the_batch_around_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 7, generator=generator)
    target = torch.randint(0, 7, (6, 6), generator=generator)
    target[1, 3:] = IGNORED
    together = WRITE.loss(logits, target)
    alone = torch.cat([WRITE.loss(logits[i : i + 1], target[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


def test_trap_10_a_history_is_a_mean_per_example_whatever_the_tasks_share(
    mini_model: Callable[..., Any], mini_examples: Callable[..., Any]
) -> None:
    """At a learning rate of nearly nothing the history equals the mean loss over the rows that were drawn."""
    from tap_core.settings.federation import TrainingConfig
    from tap_core.settings.runtime import Runtime
    from tap_core.training.loop import TrainingPhase, train
    from tap_core.training.mixed_batches import mixed_batches
    from tap_core.training.runtime import make_accelerator

    model = mini_model("colour", "letters", lora={"dropout": 0.0})
    data = {"colour": mini_examples("colour").train, "letters": mini_examples("letters").train}
    accelerator = make_accelerator(Runtime(device="cpu", threads=1), 1)
    for batch_size in (2, 7):
        settings = TrainingConfig(steps=2, batch_size=batch_size)
        history = train(model, "federated", data, settings, TrainingPhase("p", 9, 2, 1e-12), accelerator)
        stream = mixed_batches(data, batch_size, 9)
        drawn = [next(stream), next(stream)]
        model.eval()
        for name in data:
            rows = [row for step in drawn for row in step[name]]
            rows_batch = model.preprocessor.batch(model.tasks[name], rows)
            output = model(rows_batch, "federated")
            wanted = task_kind(model.tasks[name].kind).loss(output, rows_batch.target).mean().item()
            assert history[name] == pytest.approx(wanted, rel=1e-4)


def test_divergence_is_zero_for_equal_outputs_and_scaled_by_the_temperature_squared() -> None:
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    target = torch.tensor([0])
    assert CLASS.divergence(teacher, teacher, target, 2.0).item() == pytest.approx(0, abs=1e-6)
    p, q = F.softmax(teacher / 2, -1), F.softmax(student / 2, -1)
    wanted = 4 * (p * (p / q).log()).sum().item()
    assert CLASS.divergence(student, teacher, target, 2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_divergence_of_text_ignores_padding_and_of_images_is_a_squared_difference() -> None:
    target = torch.tensor([[0, 1, IGNORED]])
    student, teacher = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    teacher[0, 1] = torch.tensor([9.0, 0, 0])  # only where there is padding
    assert WRITE.divergence(student, teacher, target, 1.0).item() == 0
    image = torch.zeros(2, 3, 4, 4)
    assert DRAW.divergence(image + 2, image, image, 3.0).tolist() == [4.0, 4.0]


def test_multilabel_is_a_mean_over_classes_each_decided_by_itself() -> None:
    logits, target = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    assert MARKS.loss(logits, target).tolist() == pytest.approx([(math.log(2) + math.log(4)) / 2])
    teacher = torch.tensor([[math.log(3), math.log(3)]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert MARKS.divergence(logits, teacher, target, 1.0).tolist() == pytest.approx([kl / 2])


def test_regression_is_a_squared_difference_of_standardised_numbers() -> None:
    output, target = torch.tensor([[1.0], [-1.0]]), torch.tensor([3.0, -1.0])
    assert NUMBER.loss(output, target).tolist() == [4.0, 0.0]
    assert NUMBER.divergence(output, output + 3, target, 2.0).tolist() == [9.0, 9.0]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_trap_10_losses_and_divergences_of_every_kind_do_not_depend_on_the_batch_around_an_example(
    mini_model: Callable[..., Any], mini_examples: Callable[..., Any], randomise: Callable[..., Any], name: str
) -> None:
    model = mini_model()
    randomise(model, "federated")
    (task, *_) = (task for task in model.tasks.values() if task.kind == name)
    data, kind = mini_examples(task.name).train, task_kind(name)
    model.preprocessor.fit(task, data)
    model.eval()
    batch = model.preprocessor.batch(task, data[:6])
    with torch.no_grad():
        student, teacher = model(batch, "federated"), model(batch, "personal")
    loss, apart = kind.loss(student, batch.target), kind.divergence(student, teacher, batch.target, 2.0)
    assert loss.shape == apart.shape == (6,) and loss.dtype == torch.float32
    assert (apart > 0).all()
    for i in range(6):
        one = slice(i, i + 1)
        torch.testing.assert_close(kind.loss(student[one], batch.target[one])[0], loss[i])
        alone = kind.divergence(student[one], teacher[one], batch.target[one], 2.0)[0]
        torch.testing.assert_close(alone, apart[i], rtol=1e-4, atol=1e-7)
