"""Two rounds and stage 2 of two devices against `tests/support/reference.py`, which shares no code with the product.

Everything that a small, slow, careless test would not notice is switched on: an ordinary learning rate with warm-up,
unequal numbers of examples, weight decay, a clip that bites, accumulation, dropout, texts and answers of many lengths,
tasks that share components, tasks of both modalities, a replacement of some tasks and not of others.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch

from tap_core.algorithms.participant import Participant, RoundOutcome
from tap_core.examples import Example, TaskData
from tap_core.foundations import load_foundation
from tap_core.model import adapters
from tap_core.model.tap_model import build_model
from tap_core.settings.runtime import Runtime
from tap_core.simulation.in_process import SimulationResult, simulate

Make = Callable[..., Any]

PAIR = {"kind": "image_classification", "inputs": ["image", "text"], "classes": ["red", "green", "blue"]}
DEVICES = {"a": {"ask": 9, "colour": 14, "letters": 5}, "b": {"colour": 6, "pair": 11, "redraw": 7}}
"""Training examples by device and task."""

KINDS = ("image_classification", "text_classification", "image_generation", "text_generation")
TABLES: dict[str, Any] = {
    "rounds": {"total": 2, "clients_per_round": 2, "min_cohort": 2},
    "model": {"text_decoder_layers": 1},
    "training": {
        "steps": 2,
        "batch_size": 7,
        "accumulation": 2,
        "learning_rate": 2e-3,
        "warmup_rounds": 3,
        "weight_decay": 0.5,
        "clip_norm": 0.4,
    },
    "lora": {"dropout": 0.3},
    "algorithm": {
        "margins": dict.fromkeys(KINDS, 0.0) | {"text_classification": 5.0},
        "distillation": {"steps": 2, "learning_rate": 1e-3, "temperature": 2.0, "beta": dict.fromkeys(KINDS, 0.7)},
    },
}
TEXTS = ("a", "red a b", "what colour is this", "e f g h a b c d a b c d e f g h a b", "blue is blue")
ANSWERS = ("red", "a b c", "green green blue a b c d", "this is blue", "c")


def examples(task: str, count: int, seed: int) -> TaskData:
    random = np.random.default_rng([seed, *task.encode()])
    rows = []
    for index in range(count):
        side = 16 if task != "redraw" else (16, 64, 20)[index % 3]
        image = random.integers(0, 256, (side, side, 3)).astype(np.uint8)
        text, answer = (str(random.choice(words)) for words in (TEXTS, ANSWERS))
        colour, high = int(random.integers(3)), int(random.integers(2))
        rows.append(
            {
                "colour": Example(image, None, colour),
                "letters": Example(None, text, high),
                "redraw": Example(image, None, image),
                "ask": Example(image, text, answer),
                "pair": Example(image, text, colour),
            }[task]
        )
    return TaskData(rows, [])


def kept(shape: torch.Size, p: float, device: torch.device) -> tuple[torch.Tensor, float]:
    """As `tap_core.model.dropout.kept`, with the reference's mask, whoever calls it, when and how often."""
    return (reference.mask(shape, p) > 0).to(torch.uint8).expand(shape).contiguous(), 1 / (1 - p)


@dataclasses.dataclass
class Run:
    """What the product and the reference came to."""

    outcomes: list[Mapping[str, RoundOutcome]]
    result: SimulationResult
    teachers: dict[str, Any]
    method: reference.Reference
    rounds: list[dict[str, reference.Device]]
    devices: dict[str, reference.Device]
    W: reference.Arrays

    def assert_close(self, what: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Every tensor of every component, but for what float32 leaves open: where gradients vanish in it, and where
        they come so close to it that the rounding of earlier phases decides, which may be one value of a tensor or one
        in 500. Those too stay within Adam's steps."""
        assert set(given) == set(wanted), what
        for c in wanted:
            assert set(given[c]) == set(wanted[c]), (what, c)
            for n, value in wanted[c].items():
                difference = np.abs(given[c][n] - value)
                assert difference.max() < 15 * TABLES["training"]["learning_rate"], (what, c, n, difference.max())
                undecided = self.method.undecided.get((c, n), np.zeros(value.shape, bool))
                decided = np.sort(difference[~undecided])[::-1]
                assert decided.size >= value.size / 2, (what, c, n)
                off = decided[max(1, value.size // 500) :]
                assert off.max(initial=0) < 5e-5, f"{what}: {c}:{n} differs by {off.max():.2e}"


@pytest.fixture(scope="module")
def run(mini_config: Make, mini_foundation: Path) -> Run:
    base = mini_config()
    tasks = {name: task.model_dump() for name, task in base.tasks.items()} | {"pair": PAIR}
    config = mini_config(tasks=tasks, **TABLES)
    foundation = load_foundation(config.foundation)
    participants, devices = {}, {}
    for seed, (name, counts) in enumerate(DEVICES.items()):
        data = {task: examples(task, count, seed) for task, count in counts.items()}
        model = build_model(config, config.tasks_named(counts), foundation)
        participants[name] = Participant(config, name, model, data, Runtime(device="cpu", threads=1))
        rows = {task: [dataclasses.asdict(example) for example in split.train] for task, split in data.items()}
        devices[name] = reference.Device(name, rows)
    W = noisy(build_model(config, config.tasks_named(config.tasks), foundation).state("federated"))
    outcomes: list[Mapping[str, RoundOutcome]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "kept", kept)
        result = simulate(config, participants, W, on_round=lambda t, of_round: outcomes.append(dict(of_round)))
    teachers = {name: participant.model.state("federated") for name, participant in participants.items()}

    method, rounds = reference.Reference(config.model_dump(), mini_foundation), []
    everybody = list(devices.values())
    federated = method.federated(everybody)
    for t in range(2):
        for device in everybody:
            method.take_part(t, device, W, federated)
        rounds.append({name: dataclasses.replace(device) for name, device in devices.items()})
        W = method.aggregate(W, everybody, federated)
    for device in everybody:
        method.distil(device, W, federated)
    return Run(outcomes, result, teachers, method, rounds, devices, W)


def noisy(tensors: reference.Arrays) -> reference.Arrays:
    """Version 0 with noise in it: at its start an adapter has no effect, and its A no gradient."""
    random = np.random.default_rng(1)
    return {
        c: {n: (v + random.normal(0, 0.05, v.shape)).astype(np.float32) for n, v in sorted(group.items())}
        for c, group in sorted(tensors.items())
    }


def test_the_settings_make_a_difference(run: Run) -> None:
    """Else the comparison would show less than it says."""
    assert [run.method.rate(t) for t in (0, 1)] == pytest.approx([2e-3 / 3, 2e-3 * 5 / 9])
    for devices in (*run.rounds, run.devices):
        for device in devices.values():
            assert min(norm for phase in device.phases.values() for norm in phase.norms) > 0.6
    first, second = ([device.replaced for device in devices.values()] for devices in run.rounds)
    assert {all(replaced.values()) for replaced in first} == {True}
    assert all(set(replaced.values()) == {True, False} for replaced in second)


def test_h_fed_and_h_personal_of_both_rounds(run: Run) -> None:
    for given, wanted in zip(run.outcomes, run.rounds, strict=True):
        for name, device in wanted.items():
            outcome = given[name]
            assert outcome.state.federated_loss == pytest.approx(device.federated_loss, rel=1e-5)
            assert outcome.state.personal_loss == pytest.approx(device.personal_loss, rel=1e-5)
            assert outcome.report.replaced == device.replaced
            gap = {o: abs(device.federated_loss[o] - device.personal_loss[o]) for o in device.data}
            assert min(gap.values()) > 1e-3  # one under the other's name would be seen


def test_w_of_both_rounds(run: Run) -> None:
    for t, (given, wanted) in enumerate(zip(run.outcomes, run.rounds, strict=True)):
        for name, device in wanted.items():
            sent, kept = given[name].update.components, given[name].state.home
            assert set(sent) == run.method.federated(list(wanted.values())) and not set(sent) & set(kept)
            run.assert_close(f"w of {name} in round {t}", {**sent, **kept}, device.trained)


def test_x_of_both_rounds(run: Run) -> None:
    for t, (given, wanted) in enumerate(zip(run.outcomes, run.rounds, strict=True)):
        for name, device in wanted.items():
            assert device.personal is not None
            run.assert_close(f"x of {name} in round {t}", given[name].state.personal, device.personal)


def test_the_global_components(run: Run) -> None:
    run.assert_close("W", run.result.components, run.W)


def test_teacher_and_student_of_stage_2(run: Run) -> None:
    for name, device in run.devices.items():
        assert device.personal is not None
        run.assert_close(
            f"the teacher of {name}", run.teachers[name], reference.arrays(device.phases["teacher"].values)
        )
        run.assert_close(f"the student of {name}", run.result.devices[name].state.personal, device.personal)
