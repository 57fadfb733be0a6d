"""A phase of training, stage 2, and the machine's settings."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tap_core.algorithms import algorithm_of
from tap_core.algorithms.base import DeviceState
from tap_core.algorithms.device import Local
from tap_core.algorithms.distillation import teaching
from tap_core.errors import Diverged, TapError
from tap_core.examples import TaskData
from tap_core.seeds import derive_seed
from tap_core.settings.federation import TrainingConfig
from tap_core.settings.runtime import Runtime
from tap_core.tasks import task_kind
from tap_core.training.loop import TrainingPhase, train
from tap_core.training.runtime import make_accelerator

Make = Callable[..., Any]
CPU = Runtime(device="cpu", threads=1)


def equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(a[c][k], b[c][k]) for c in a for k in a[c])


def test_a_phase_trains_one_set_and_leaves_the_other_and_the_frozen_weights(
    mini_model: Make, mini_examples: Make
) -> None:
    model = mini_model()
    data = {name: mini_examples(name).train for name in model.tasks}
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad and "lora" not in name}
    personal, federated = model.state("personal"), model.state("federated")
    history = train(
        model,
        "federated",
        data,
        TrainingConfig(steps=4, batch_size=8),
        TrainingPhase("p", 1, 4, 3e-3),
        make_accelerator(CPU, 1),
    )
    assert set(history) == set(data) and all(math.isfinite(loss) for loss in history.values())
    assert equal(personal, model.state("personal"))
    after = model.state("federated")
    assert [c for c in after if all(np.array_equal(after[c][k], federated[c][k]) for k in after[c])] == []
    decoders = tuple(n for n in frozen if n.startswith("decoders"))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen and n not in decoders)


def test_equal_seeds_give_equal_bits_and_the_loss_falls(mini_model: Make, mini_examples: Make) -> None:
    data = {"colour": mini_examples("colour", train=30).train}
    settings = TrainingConfig(batch_size=10)
    accelerator = make_accelerator(CPU, 1)
    first, second = mini_model("colour"), mini_model("colour")
    losses = [
        train(m, "personal", data, settings, TrainingPhase("p", 1, 30, 5e-3), accelerator) for m in (first, second)
    ]
    assert losses[0] == losses[1] and equal(first.state("personal"), second.state("personal"))
    later = train(first, "personal", data, settings, TrainingPhase("p", 2, 5, 5e-3), accelerator)
    assert later["colour"] < 0.7 * losses[0]["colour"]


def test_accumulated_batches_make_one_step(mini_model: Make, mini_examples: Make) -> None:
    data = {"colour": mini_examples("colour").train}
    calls: list[tuple[str, int, int]] = []
    model = mini_model("colour")
    before = model.state("personal")["decoder/colour"]["outer.bias"]
    train(
        model,
        "personal",
        data,
        TrainingConfig(batch_size=4, accumulation=3),
        TrainingPhase("personal", 1, 2, 1e-3),
        make_accelerator(CPU, 3),
        on_progress=lambda *call: calls.append(call),
    )
    assert calls == [("personal", 1, 2), ("personal", 2, 2)]
    moved = np.abs(model.state("personal")["decoder/colour"]["outer.bias"] - before).max()
    assert 0 < moved <= 2.1 * 1e-3  # AdamW moves a weight by at most about the learning rate in a step


def test_a_diverging_loss_ends_the_phase_in_one_line(mini_model: Make, mini_examples: Make) -> None:
    model = mini_model("redraw")
    data = {"redraw": mini_examples("redraw").train}
    with pytest.raises(TapError, match="training diverged in step .* lower the learning rate"):
        train(
            model,
            "federated",
            data,
            TrainingConfig(batch_size=4),
            TrainingPhase("p", 1, 20, 1e30),
            make_accelerator(CPU, 1),
        )


def test_bf16_trains_and_keeps_float32_parameters(mini_model: Make, mini_examples: Make) -> None:
    model = mini_model("ask")
    data = {"ask": mini_examples("ask").train}
    accelerator = make_accelerator(Runtime(device="cpu", precision="bf16", force_precision=True, threads=1), 1)
    history = train(model, "personal", data, TrainingConfig(batch_size=4), TrainingPhase("p", 1, 3, 1e-3), accelerator)
    assert math.isfinite(history["ask"])
    assert {p.dtype for p in model.trainable("personal").values()} == {torch.float32}


def test_parameters_that_the_last_step_made_infinite_are_divergence_unless_better_ones_are_kept(
    mini_model: Make, mini_examples: Make, mini_config: Make
) -> None:
    model = mini_model("shade")
    data = {"shade": mini_examples("shade", train=8, test=0, decision=4)}
    local = Local(mini_config(), "d", model, data, make_accelerator(CPU, 1))
    version_0 = model.state("personal")
    losses = local.train("personal", "personal", 0, steps=1, learning_rate=1e39, patience=1)
    assert math.isfinite(losses["shade"]) and equal(version_0, model.state("personal"))
    with pytest.raises(
        Diverged, match=r"^training diverged in student \(.+:.+ is not finite\); lower the learning rate$"
    ):
        local.train("personal", "student", 0, steps=1, learning_rate=1e39)


def distil(model: Any, data: Any, config: Any, device: str, accelerator: Any, on_progress: Any = None) -> None:
    """Stage 2 of TAP on the two sets that the model holds."""
    parts = {name: TaskData(examples, ()) for name, examples in data.items()}
    algorithm_of(config).finish(
        Local(config, device, model, parts, accelerator, on_progress), DeviceState.initial(data)
    )


def test_distillation_pulls_the_student_towards_the_teacher(
    mini_model: Make, mini_examples: Make, mini_config: Make
) -> None:
    """A teacher that learnt other labels is followed with a large beta, and not with none."""
    examples = mini_examples("colour", train=30).train
    shifted = [replace(example, target=(example.target + 1) % 3) for example in examples]
    followed = []
    for beta in (0.0, 50.0):
        config = mini_config(algorithm={"distillation": {"beta": {"image_classification": beta}}})
        model = mini_model("colour", lora={"dropout": 0.0})
        accelerator = make_accelerator(CPU, 1)
        settings = TrainingConfig(batch_size=10)
        train(model, "federated", {"colour": shifted}, settings, TrainingPhase("teacher", 1, 30, 5e-3), accelerator)
        extra = teaching(model, config.algorithm.distillation, accelerator)
        phase = TrainingPhase("student", 2, 30, 5e-3)
        train(model, "personal", {"colour": examples}, settings, phase, accelerator, extra=extra)
        batch = model.preprocessor.batch(model.tasks["colour"], shifted)
        with torch.no_grad():
            followed.append(float((model.eval()(batch, "personal").argmax(-1) == batch.target).float().mean()))
    assert followed[0] < 0.4 and followed[1] > 0.8


def test_a_phases_mean_loss_is_without_what_is_added_to_it(mini_model: Make, mini_examples: Make) -> None:
    data = {"colour": mini_examples("colour").train}
    found = []
    for extra in (None, lambda batch: lambda output: output.new_ones(len(output), dtype=torch.float32)):
        model = mini_model("colour")
        phase = TrainingPhase("p", 1, 3, 3e-3)
        accelerator = make_accelerator(CPU, 1)
        found.append(train(model, "personal", data, TrainingConfig(batch_size=4), phase, accelerator, extra=extra))
    assert found[0] == found[1]  # a constant has no gradient: the two train alike


def test_every_personal_tensor_gets_a_gradient_in_distillation(
    mini_model: Make, mini_examples: Make, mini_config: Make
) -> None:
    """The teacher's pass must not switch off the student's encoder adapters."""
    model = mini_model("ask")
    before = model.state("personal")
    config = mini_config(algorithm={"distillation": {"steps": 4, "learning_rate": 1e-2}})
    distil(model, {"ask": mini_examples("ask").train}, config, "device", make_accelerator(CPU, 1))
    after = model.state("personal")
    still = [(c, k) for c in after for k in after[c] if np.array_equal(after[c][k], before[c][k])]
    assert still == []


def test_the_teacher_is_the_received_set_after_p_steps_of_plain_training(
    mini_model: Make, mini_examples: Make, mini_config: Make, randomise: Make
) -> None:
    """docs/method.md section 5, step 1: an untrained teacher, or one of another phase, would differ in its bits."""
    config = mini_config(algorithm={"distillation": {"steps": 3, "learning_rate": 1e-2}})
    model, manual = mini_model("colour", "ask"), mini_model("colour", "ask")
    for one in (model, manual):
        randomise(one, "federated")
    received = model.state("federated")
    data = {name: mini_examples(name).train for name in model.tasks}
    distil(model, data, config, "a device", make_accelerator(CPU, 1))
    phase = TrainingPhase("teacher", derive_seed(config.seed, "a device", "stage 2", "teacher"), 3, 1e-2)
    train(manual, "federated", data, config.training, phase, make_accelerator(CPU, 1))
    taught = model.state("federated")
    assert [(c, k) for c in taught for k in taught[c] if np.array_equal(taught[c][k], received[c][k])] == []
    assert equal(taught, manual.state("federated"))


def test_the_student_trains_under_a_frozen_teacher(
    mini_model: Make, mini_examples: Make, mini_config: Make, randomise: Make
) -> None:
    """P steps of the federated set alone, then P of the personal one alone: neither phase touches the other's set."""
    config = mini_config(algorithm={"distillation": {"steps": 3, "learning_rate": 1e-2}})
    model = mini_model("colour", "ask")
    randomise(model, "federated")
    data = {name: mini_examples(name).train for name in model.tasks}
    began = {parameter_set: model.state(parameter_set) for parameter_set in ("federated", "personal")}
    seen: list[tuple[str, int, Any, Any]] = []

    def snapshot(phase: str, step: int, steps: int) -> None:
        assert steps == 3
        seen.append((phase, step, model.state("federated"), model.state("personal")))

    distil(model, data, config, "a device", make_accelerator(CPU, 1), snapshot)
    assert [(phase, step) for phase, step, *_ in seen] == [(p, s) for p in ("teacher", "student") for s in (1, 2, 3)]
    teacher = seen[2][2]
    assert all(equal(personal, began["personal"]) for _, _, _, personal in seen[:3])
    assert not equal(teacher, began["federated"]) and not equal(seen[-1][3], began["personal"])
    assert all(equal(federated, teacher) for _, _, federated, _ in seen[3:])
    assert equal(model.state("federated"), teacher) and equal(model.state("personal"), seen[-1][3])
    assert all(parameter.grad is None for parameter in model.trainable("federated").values())


@pytest.mark.parametrize("task", ["colour", "letters", "redraw", "ask"])
def test_the_teacher_draws_no_dropout_and_the_student_goes_on_training(
    mini_model: Make, mini_examples: Make, mini_config: Make, randomise: Make, task: str
) -> None:
    config = mini_config(algorithm={"distillation": {"temperature": 2.0}})
    model = mini_model(task, lora={"dropout": 0.3})
    randomise(model, "federated")
    batch = model.preprocessor.batch(model.tasks[task], mini_examples(task).train[:4])
    model.train()
    student = model(batch, "personal").detach().requires_grad_(True)
    extra = teaching(model, config.algorithm.distillation, make_accelerator(CPU, 1))
    values, noisy = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        values.append(extra(batch)(student))
        assert all(module.training for name, module in model.named_modules() if ".embed" not in name)
        torch.manual_seed(seed)
        noisy.append(model(batch, "federated"))
    assert not torch.equal(noisy[0], noisy[1])  # dropout would have been seen
    assert torch.equal(values[0], values[1]) and values[0].shape == (4,)
    with torch.no_grad():
        taught = model.eval()(batch, "federated")
    beta = config.algorithm.distillation.beta.of(batch.task.kind)
    assert torch.equal(values[0], beta * task_kind(batch.task.kind).divergence(student, taught, batch.target, 2.0))
    values[0].sum().backward()  # the gradient is the student's; none reaches the teacher
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.trainable("federated").values())
