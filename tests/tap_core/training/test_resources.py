"""Batches in parts, checkpointing, and the cache of untrained layers: less memory or time, the same training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tap_core.errors import UsageError
from tap_core.model.tap_model import TapModel
from tap_core.settings.federation import TrainingConfig
from tap_core.settings.runtime import Runtime
from tap_core.training.loop import TrainingPhase, train
from tap_core.training.resources import Resources, kept_bytes
from tap_core.training.runtime import make_accelerator

Make = Callable[..., Any]
CPU = Runtime(device="cpu", threads=1)
TASKS = ("colour", "letters", "ask")


def gradients(model: TapModel, data: Any, resources: Resources | None, batch_size: int = 90) -> list[torch.Tensor]:
    """Of one step of the personal set."""
    accelerator = make_accelerator(CPU, 1)
    found: list[torch.Tensor] = []

    def keep(parameters: list[torch.nn.Parameter], _norm: float) -> None:
        found.extend(torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters)

    accelerator.clip_grad_norm_ = keep
    settings, phase = TrainingConfig(batch_size=batch_size), TrainingPhase("p", 4, 1, 1e-3)
    train(model, "personal", data, settings, phase, accelerator, resources=resources)
    assert any(gradient.abs().sum() > 0 for gradient in found)
    return found


def prepared(mini_model: Make, randomise: Make, *tasks: str, **tables: Any) -> TapModel:
    model: TapModel = mini_model(*tasks, **{"lora": {"dropout": 0.3}, **tables})
    randomise(model, "personal")
    return model


def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    mini_model: Make, mini_examples: Make, randomise: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout too: each example loses the values that it would lose in the whole batch."""
    data = {name: mini_examples(name, train=40).train for name in TASKS}
    whole = gradients(prepared(mini_model, randomise, *TASKS), data, None)
    sizes: list[int] = []
    original = TapModel.forward
    monkeypatch.setattr(TapModel, "forward", lambda m, b, w: (sizes.append(b.size), original(m, b, w))[1])
    parted = gradients(prepared(mini_model, randomise, *TASKS), data, Resources(Runtime(memory_mb=1)))
    assert sorted(set(sizes))[0] == 1 and 1 < sorted(set(sizes))[-1] < 30  # one example is measured; then parts
    assert sum(sizes) == 90 + sizes.count(1)
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_parts_follow_from_budget_and_shapes_alone(mini_model: Make, mini_examples: Make) -> None:
    model = mini_model("colour")
    batch = model.preprocessor.batch(model.tasks["colour"], mini_examples("colour").train[:8])
    state = torch.get_rng_state()

    def forward(part: Any) -> torch.Tensor:
        return model(part, "federated")

    one = kept_bytes(model.train(), lambda: forward(batch.rows(0, 1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert Resources().examples_at_once(model, batch, forward) == 8
    for budget, expected in ((0, 1), (one - 1, 1), (3 * one + 1, 3), (100 * one, 8)):
        resources = Resources()
        resources._budget = budget
        assert resources.examples_at_once(model, batch, forward) == expected
    two = kept_bytes(model, lambda: forward(batch.rows(0, 2)))
    assert 1.9 * one < two < 2.1 * one


def test_parts_do_not_depend_on_what_was_computed_before(
    mini_model: Make, mini_examples: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stage 2 adds to the loss keeps more for the backward pass; a process that starts there must say the same."""
    data = {"ask": mini_examples("ask", train=32).train}
    settings, accelerator = TrainingConfig(batch_size=32), make_accelerator(CPU, 1)

    def extra(_batch: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        wide = torch.ones(20_000)
        return lambda output: (output.flatten(1).sum(1, keepdim=True) * wide).square().sum(1)

    def parts(resources: Resources) -> int:
        """The largest part of stage 2's batch."""
        sizes: list[int] = []
        original = TapModel.forward
        with monkeypatch.context() as patch:
            patch.setattr(TapModel, "forward", lambda m, b, w: (sizes.append(b.size), original(m, b, w))[1])
            phase = TrainingPhase("student", 2, 1, 1e-3)
            train(mini_model("ask"), "personal", data, settings, phase, accelerator, extra=extra, resources=resources)
        return max(sizes)

    lived = Resources(Runtime(memory_mb=3))
    train(mini_model("ask"), "personal", data, settings, TrainingPhase("p", 1, 1, 1e-3), accelerator, resources=lived)
    assert 1 < parts(lived) == parts(Resources(Runtime(memory_mb=3))) < 32


def test_checkpointing_changes_no_bit_and_keeps_less(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    data = {name: mini_examples(name, train=12).train for name in TASKS}
    plain = prepared(mini_model, randomise, *TASKS)
    recomputed = prepared(mini_model, randomise, *TASKS)
    expected = gradients(plain, data, None, batch_size=12)
    given = gradients(recomputed, data, Resources(Runtime(checkpointing=True)), batch_size=12)
    assert all(torch.equal(one, other) for one, other in zip(expected, given, strict=True))
    batch = plain.preprocessor.batch(plain.tasks["ask"], data["ask"][:4])
    for model in (plain, recomputed):
        for parameter in model.trainable("personal").values():
            parameter.requires_grad_(True)
    kept = [kept_bytes(model, lambda model=model: model(batch, "personal")) for model in (plain, recomputed)]
    assert kept[1] < 0.6 * kept[0]


def test_checkpointing_in_parts_has_the_gradient_of_the_whole(
    mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    """A part's dropout is that of its place in the batch in the backward pass too."""
    data = {name: mini_examples(name, train=12).train for name in TASKS}
    whole = gradients(prepared(mini_model, randomise, *TASKS), data, None, batch_size=12)
    resources = Resources(Runtime(checkpointing=True))
    resources._budget = 1  # one example at a time
    parted = gradients(prepared(mini_model, randomise, *TASKS), data, resources, batch_size=12)
    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_adapters_in_the_last_layers_alone(mini_model: Make, mini_examples: Make) -> None:
    model = mini_model("ask", lora={"encoder_layers": 1, "dropout": 0.0})
    for modality in ("image", "text"):
        names = model.state("personal")[f"encoder/{modality}"]
        assert names and all(name.startswith("blocks.1.") for name in names)
        assert model.encoders[modality].frozen_blocks == 1
    with pytest.raises(
        UsageError, match=r"lora\.encoder_layers = 3 and the encoders of a flava foundation have 2 layers at most"
    ):
        mini_model("ask", lora={"encoder_layers": 3})
    everywhere = mini_model("ask", lora={"encoder_layers": 2})
    assert everywhere.encoders["image"].frozen_blocks == 0
    assert set(everywhere.state("personal")["encoder/image"]) == set(
        mini_model("ask").state("personal")["encoder/image"]
    )
    batch = model.preprocessor.batch(model.tasks["ask"], mini_examples("ask").train[:3])
    prefix = model.encoders["image"].prefix(batch.image, None)
    assert not prefix.requires_grad
    with torch.no_grad():
        whole = model.encoders["image"](batch.image, None, "personal")
        rest = model.encoders["image"](None, None, "personal", prefix)
    assert torch.equal(whole, rest)


@pytest.mark.parametrize("task", ["colour", "letters", "ask"])
def test_the_cache_changes_no_bit_and_computes_each_example_once(
    mini_model: Make, mini_examples: Make, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tap_core.model.encoders import AdaptedEncoder

    data = {task: mini_examples(task, train=10).train}
    calls: list[int] = []
    original = AdaptedEncoder.prefix
    monkeypatch.setattr(AdaptedEncoder, "prefix", lambda s, i, m: (calls.append(len(i)), original(s, i, m))[1])

    def trained(resources: Resources | None) -> dict[str, Any]:
        model = mini_model(task, lora={"encoder_layers": 1, "dropout": 0.3})
        calls.clear()
        for phase in ("federated", "personal"):
            settings = TrainingConfig(batch_size=4)
            train(
                model,
                phase,
                data,
                settings,
                TrainingPhase(phase, 3, 6, 1e-2),
                make_accelerator(CPU, 1),
                resources=resources,
            )
        return {parameter_set: model.state(parameter_set) for parameter_set in ("federated", "personal")}

    inputs = 2 if task == "ask" else 1
    expected = trained(Resources(Runtime(cache_mb=0)))
    assert calls == [1] * (2 * 6 * 4 * inputs)
    given = trained(Resources(directory=tmp_path))
    assert calls == [1] * (10 * inputs)
    assert list(tmp_path.iterdir()) == []  # nothing that anybody else could open, and nothing left behind
    for parameter_set, components in expected.items():
        for component, tensors in components.items():
            for name, value in tensors.items():
                assert np.array_equal(value, given[parameter_set][component][name]), (parameter_set, component, name)


def test_the_cache_is_bounded_and_a_full_disk_is_no_end(
    mini_model: Make, mini_examples: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tap_core.training import prefix_cache

    model = mini_model("letters", lora={"encoder_layers": 1})
    examples = mini_examples("letters", train=10).train
    batch = model.preprocessor.batch(model.tasks["letters"], examples)
    row = model.preprocessor.text_length * 32 * 4
    monkeypatch.setattr(prefix_cache, "MEGABYTE", 3 * row)
    cache = prefix_cache.PrefixCache(limit_mb=1)
    first = cache.complete(model, batch, range(10)).prefixes["text"]
    (kept,) = cache._kept.values()
    assert sorted(kept._place) == [0, 1, 2]
    assert torch.equal(cache.complete(model, batch, range(10)).prefixes["text"], first)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix_cache._Rows, "put", full)
    cache = prefix_cache.PrefixCache(limit_mb=1)
    assert torch.equal(cache.complete(model, batch, range(10)).prefixes["text"], first)
    assert "cannot be written (No space left on device); going on without it" in caplog.text


def test_the_cached_and_the_whole_forward_pass_agree(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    """Padded texts of several lengths: each was computed at its own."""
    model = mini_model("letters", lora={"encoder_layers": 1}).eval()
    randomise(model, "personal")
    examples = mini_examples("letters", train=6).train
    examples = [type(e)(e.image, " ".join(e.text.split()[: 1 + i]), e.target) for i, e in enumerate(examples)]
    batch = model.preprocessor.batch(model.tasks["letters"], examples)
    completed = Resources().prefixes.complete(model, batch, range(6))
    assert completed.prefixes["text"].shape[:2] == batch.input_ids.shape
    torch.testing.assert_close(model(completed, "personal"), model(batch, "personal"), rtol=1e-5, atol=1e-5)
