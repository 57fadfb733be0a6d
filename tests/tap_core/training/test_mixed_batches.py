"""Preprocessing and batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tap_core.examples import Example
from tap_core.model.tap_model import TapModel
from tap_core.settings.federation import TrainingConfig
from tap_core.settings.runtime import Runtime
from tap_core.tasks.batch import TaskBatch
from tap_core.tasks.text_generation import IGNORED
from tap_core.training.loop import TrainingPhase, train
from tap_core.training.mixed_batches import mixed_batches, task_shares
from tap_core.training.runtime import make_accelerator

Make = Callable[..., Any]


def test_trap_6_pixels_survive_the_round_trip_and_never_wrap(mini_model: Make) -> None:
    preprocessor = mini_model("colour").preprocessor
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(preprocessor.pixels(preprocessor.image(ramp)), ramp)
    assert (preprocessor.pixels(np.full((3, 16, 16), 9.0)) == 255).all()
    assert (preprocessor.pixels(np.full((3, 16, 16), -9.0)) == 0).all()


def test_images_are_resized_and_normalised(mini_model: Make) -> None:
    preprocessor = mini_model("colour").preprocessor
    image = preprocessor.image(np.full((40, 30, 3), 255, np.uint8))
    assert image.shape == (3, 16, 16) and image.dtype == np.float32
    np.testing.assert_allclose(image, (1 - 0.5) / 0.25)


def test_texts_are_padded_and_cut_with_the_end_token_kept(mini_model: Make) -> None:
    preprocessor = mini_model("letters").preprocessor
    ids, mask = preprocessor.texts(["a b", "a b c d e f g h " * 5])
    assert ids.shape == (2, 16) and mask.sum(axis=1).tolist() == [4, 16]
    assert ids[1, -1] == preprocessor.special.end and ids[0, 4:].tolist() == [0] * 12


def test_answers_begin_and_end_with_their_tokens_and_stay_within_the_length(mini_model: Make) -> None:
    preprocessor = mini_model("ask").preprocessor
    rows = preprocessor.answers(["red", "a b c d e f g h"], 5, IGNORED)
    assert rows.shape == (2, 6)
    assert rows[0].tolist()[3:] == [IGNORED] * 3 and rows[0, 2] == preprocessor.special.end
    assert rows[1, 0] == preprocessor.special.start and rows[1, 5] == preprocessor.special.end
    assert preprocessor.decode(rows[1]) == "a b c d"


@pytest.mark.parametrize("batch_size", [1, 5, 8])
def test_batches_mix_the_tasks_and_show_each_example_once_before_any_twice(
    mini_examples: Make, batch_size: int
) -> None:
    data = {"colour": mini_examples("colour", train=6).train, "letters": mini_examples("letters", train=4).train}
    batches = mixed_batches(data, batch_size, seed=1)
    drawn: list[int] = []
    while len(drawn) < 6:
        batch = next(batches)
        assert set(batch) == {"colour", "letters"} and all(batch.values())
        assert sum(len(rows) for rows in batch.values()) == max(2, batch_size)
        drawn += [next(i for i, e in enumerate(data["colour"]) if e is row) for row in batch["colour"]]
    assert set(drawn[:6]) == set(range(6))


@pytest.mark.parametrize(
    ("examples", "batch_size", "wanted"),
    [
        ({"a": 30, "b": 10}, 8, {"a": 6, "b": 2}),
        ({"a": 10, "b": 10, "c": 10}, 8, {"a": 3, "b": 3, "c": 2}),  # equal remainders: by name
        ({"c": 10, "b": 10, "a": 10}, 7, {"a": 3, "b": 2, "c": 2}),
        ({"a": 50, "b": 30, "c": 20}, 8, {"a": 4, "b": 2, "c": 2}),  # quotas 4, 2.4, 1.6
        ({"a": 1000, "b": 1}, 8, {"a": 7, "b": 1}),  # one at the least
        ({"a": 60, "b": 59, "c": 1}, 7, {"a": 3, "b": 3, "c": 1}),  # the one at the least is not taken from one task
        ({"a": 1, "b": 100, "c": 1}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 1, "b": 100, "c": 1}, 2, {"a": 1, "b": 1, "c": 1}),  # more tasks than room
        ({"a": 7}, 32, {"a": 32}),
    ],
)
def test_shares_are_in_proportion_to_the_training_examples(
    examples: dict[str, int], batch_size: int, wanted: dict[str, int]
) -> None:
    assert task_shares(examples, batch_size, "proportional") == wanted


def test_equal_shares_do_not_ask_for_the_number_of_examples() -> None:
    assert task_shares({"b": 1, "a": 900, "c": 5}, 8, "equal") == {"a": 3, "b": 3, "c": 2}


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 10**6), min_size=1, max_size=9),
    st.integers(1, 300),
)
def test_shares_add_up_and_are_within_one_of_the_quota_where_nobody_is_raised(
    examples: dict[str, int], batch_size: int
) -> None:
    shares = task_shares(examples, batch_size, "proportional")
    assert sum(shares.values()) == max(batch_size, len(examples)) and min(shares.values()) >= 1
    quotas = {name: batch_size * n / sum(examples.values()) for name, n in examples.items()}
    if min(quotas.values()) >= 1:
        assert all(abs(shares[name] - quota) < 1 for name, quota in quotas.items())
    assert all(shares[a] >= shares[b] for a in examples for b in examples if examples[a] > examples[b])


def test_training_takes_the_shares_that_the_settings_name(mini_model: Make, mini_examples: Make) -> None:
    model = mini_model("colour", "letters")
    data = {"colour": mini_examples("colour", train=30).train, "letters": mini_examples("letters", train=10).train}
    sizes: list[tuple[str, int]] = []
    model.register_forward_pre_hook(lambda module, args: sizes.append((args[0].task.name, args[0].size)))
    accelerator = make_accelerator(Runtime(device="cpu", threads=1), 1)
    for shares, wanted in (
        ("proportional", [("colour", 6), ("letters", 2)]),
        ("equal", [("colour", 4), ("letters", 4)]),
    ):
        sizes.clear()
        settings = TrainingConfig.model_validate({"batch_size": 8, "shares": shares})
        train(model, "federated", data, settings, TrainingPhase("p", 1, 1, 1e-3), accelerator)
        assert sizes == wanted
    assert TrainingConfig().shares == "proportional"


def test_batches_depend_on_the_seed_and_not_on_other_tasks(mini_examples: Make) -> None:
    colour, letters = mini_examples("colour").train, mini_examples("letters").train

    def first(data: dict[str, Any], size: int, seed: int) -> list[int]:
        return [id(row) for row in next(mixed_batches(data, size, seed))["colour"]]

    assert first({"colour": colour}, 4, 1) == first({"colour": colour, "letters": letters}, 8, 1)
    assert first({"colour": colour}, 4, 1) != first({"colour": colour}, 4, 2)


def test_trap_11_each_example_goes_through_its_own_tasks_components(mini_model: Make, mini_examples: Make) -> None:
    """A mixed batch gives each task's rows what a batch of that task alone gives them."""
    model = mini_model("colour", "redraw").eval()
    data = {name: mini_examples(name).train for name in model.tasks}
    mixed = next(mixed_batches(data, 8, seed=1))
    for name, rows in mixed.items():
        together = model(model.preprocessor.batch(model.tasks[name], rows), "federated")
        for index, row in enumerate(rows):
            alone = model(model.preprocessor.batch(model.tasks[name], [row]), "federated")
            torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_trap_11_training_routes_every_example_of_a_mixed_batch_by_its_own_task(
    mini_model: Make, mini_examples: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks of one kind, one modality and equally many classes: only the task's name tells their decoders apart.

    The rows are recognised by their pixels where they enter the model, whatever made batches of them.
    """
    label = {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b", "c"]}
    model = mini_model(tasks={"colour": label, "shade": label})
    data: dict[str, list[Example]] = {
        name: mini_examples("colour", seed=seed).train for name, seed in (("colour", 1), ("shade", 2))
    }
    owner = {model.preprocessor.image(e.image).tobytes(): name for name in data for e in data[name]}
    assert len(owner) == 40  # no two images are equal
    passed: list[tuple[str, str]] = []
    forward = TapModel.forward

    def spy(self: TapModel, batch: TaskBatch, parameter_set: Any) -> torch.Tensor:
        passed.extend((batch.task.name, owner[row.numpy().tobytes()]) for row in batch.image)
        return forward(self, batch, parameter_set)

    monkeypatch.setattr(TapModel, "forward", spy)
    accelerator = make_accelerator(Runtime(device="cpu", threads=1), 1)
    for step in range(3):
        before = model.state("federated")
        passed.clear()
        train(model, "federated", data, TrainingConfig(batch_size=6), TrainingPhase("p", step, 1, 1e-2), accelerator)
        assert sorted(passed) == [("colour", "colour")] * 3 + [("shade", "shade")] * 3
        after = model.state("federated")
        still = [
            (c, k) for c in ("decoder/colour", "decoder/shade") for k in after[c] if (after[c][k] == before[c][k]).all()
        ]
        assert still == []
