"""The model: strict loading, the pretrained function at the start, routing, and one copy of the frozen weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tap_core.components import components_of_task
from tap_core.foundations import load_foundation
from tap_core.model import products
from tap_core.model.adapters import PARAMETER_SETS
from tap_core.tasks.batch import TaskBatch

Make = Callable[..., Any]


def batch_of(model: Any, examples: Any, task: str, count: int = 4) -> TaskBatch:
    return model.preprocessor.batch(model.tasks[task], examples(task).train[:count])


def test_trap_1_loading_is_strict(mini_model: Make) -> None:
    model = mini_model("colour")
    good = model.state("federated")
    for spoil in (
        lambda t: t.pop("encoder/image"),
        lambda t: t.update({"encoder/text": {}}),
        lambda t: t["encoder/image"].pop(sorted(t["encoder/image"])[0]),
        lambda t: t["encoder/image"].update({"model.extra": np.zeros(2, np.float32)}),
        lambda t: t["decoder/colour"].update({"outer.bias": np.zeros(9, np.float32)}),
    ):
        bad = {name: dict(group) for name, group in good.items()}
        spoil(bad)
        with pytest.raises(ValueError):
            model.load("federated", bad)


def test_trap_1_what_is_loaded_is_what_the_model_holds_bit_for_bit(mini_model: Make, randomise: Make) -> None:
    source, target = mini_model(), mini_model()
    randomise(source, "federated")
    target.load("federated", source.state("federated"))
    for name, group in target.state("federated").items():
        for key, value in group.items():
            assert np.array_equal(value, source.state("federated")[name][key])
    untouched = mini_model().state("personal")
    assert all(np.array_equal(v, untouched[n][k]) for n, g in target.state("personal").items() for k, v in g.items())


@pytest.mark.parametrize(
    ("task", "modality"),
    [("colour", "image"), ("letters", "text"), ("redraw", "image"), ("ask", "image"), ("ask", "text")],
)
def test_trap_2_the_output_changes_when_an_input_changes(
    mini_model: Make, mini_examples: Make, randomise: Make, task: str, modality: str
) -> None:
    model = mini_model(task).eval()
    randomise(model, "personal")
    batch = batch_of(model, mini_examples, task)
    before = model(batch, "personal")
    if modality == "image":
        batch.image.copy_(batch.image.flip(0) + 1)
    else:
        first = batch.input_ids[:, 1]
        first.copy_(torch.where(first == 7, 8, 7))
    after = model(batch, "personal")
    assert (before - after).abs().amax(dim=tuple(range(1, before.ndim))).min() > 1e-4


def test_trap_3_a_forward_pass_touches_exactly_the_components_that_the_task_uses(
    mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    model = mini_model()
    randomise(model, "federated")
    for task in model.tasks.values():
        for parameter_set in PARAMETER_SETS:
            for parameter in model.trainable(parameter_set).values():
                parameter.requires_grad_(True)
                parameter.grad = None
        model(batch_of(model, mini_examples, task.name), "federated").square().sum().backward()
        reached = {key.split(":")[0] for key, p in model.trainable("federated").items() if p.grad is not None}
        assert reached == set(components_of_task(task))
        assert all(p.grad is None for p in model.trainable("personal").values())


def test_trap_7_with_b_zero_the_model_is_the_frozen_base_bit_for_bit(mini_model: Make, mini_examples: Make) -> None:
    model = mini_model().eval()
    for task in model.tasks:
        batch = batch_of(model, mini_examples, task)
        with_adapters, *_ = model.encode(batch, "federated")
        for component, group in model._parameters_of["federated"].items():
            for key, parameter in group.items():
                if key.endswith("lora_A") and not component.startswith("decoder"):
                    parameter.data.fill_(3.0)  # must not matter while B is zero
        again, *_ = model.encode(batch, "federated")
        assert torch.equal(with_adapters, again)


def test_trap_7_with_b_zero_the_output_is_that_without_adapters_bit_for_bit(
    mini_model: Make, mini_examples: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the adapters add is left out altogether, in the encoders and in the backbone."""
    model = mini_model().eval()
    batches = {task: batch_of(model, mini_examples, task) for task in model.tasks}

    def outputs() -> dict[tuple[str, str], torch.Tensor]:
        with torch.no_grad():
            return {
                (task, parameter_set): model(batch, parameter_set)
                for task, batch in batches.items()
                for parameter_set in PARAMETER_SETS
            }

    def bypassed() -> dict[tuple[str, str], torch.Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(products, "add_update_", lambda *_: None)
            return outputs()

    adapted, plain = outputs(), bypassed()
    assert len(model.tasks) == 6 and len(adapted) == 12
    assert [key for key in plain if not torch.equal(adapted[key], plain[key])] == []
    for parameter_set in PARAMETER_SETS:
        for key, parameter in model.trainable(parameter_set).items():
            if key.endswith("lora_B"):
                parameter.data.fill_(0.05)
    moved, plain_again = outputs(), bypassed()  # the bypass was one: B would have been seen, and is not seen in it
    assert [key for key in plain if torch.equal(moved[key], plain[key])] == []
    assert [key for key in plain if not torch.equal(plain_again[key], plain[key])] == []


def test_trap_7_with_b_zero_the_tokens_are_those_of_transformers_own_layers(
    mini_model: Make, mini_examples: Make, mini_foundation: Path
) -> None:
    from transformers import FlavaModel

    plain = FlavaModel.from_pretrained(mini_foundation).eval()
    model = mini_model().eval()
    batch = batch_of(model, mini_examples, "ask")
    tokens, mask, _ = model.encode(batch, "personal")
    with torch.no_grad():
        image = plain.image_to_mm_projection(plain.image_model(batch.image).last_hidden_state)
        text = plain.text_model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        text = plain.text_to_mm_projection(text)
        mote, mome = plain.multimodal_model.encoder.layer[:2]
        joined = mome(torch.cat([mote(image)[0], mote(text)[0]], dim=1))[0]
    assert mask.all()
    torch.testing.assert_close(tokens, joined, rtol=1e-5, atol=1e-5)


def test_padding_does_not_reach_the_output(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    model = mini_model("letters", "ask").eval()
    randomise(model, "personal")
    for task in ("letters", "ask"):
        batch = batch_of(model, mini_examples, task)
        pad = torch.nn.functional.pad
        padded = TaskBatch(
            batch.task, batch.image, pad(batch.input_ids, (0, 4)), pad(batch.attention_mask, (0, 4)), batch.target
        )
        torch.testing.assert_close(model(padded, "personal"), model(batch, "personal"), rtol=1e-5, atol=1e-5)


def test_trap_9_the_frozen_weights_are_loaded_once_and_stay_once_in_memory(
    mini_model: Make, mini_foundation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tap_core.foundations as registry
    from tap_core.foundations import flava as module

    loads = []
    original = module.FlavaModel.from_pretrained
    monkeypatch.setattr(
        module.FlavaModel, "from_pretrained", lambda *a, **k: (loads.append(a), original(*a, **k))[1], raising=True
    )
    registry._load.cache_clear()
    load_foundation(str(mini_foundation))
    first, second = mini_model("ask"), mini_model()
    assert len(loads) == 1
    frozen = [
        {p.data_ptr() for n, p in m.named_parameters() if not n.startswith("decoders") and "lora_" not in n}
        for m in (first, second)
    ]
    assert frozen[0] and frozen[0] <= frozen[1]


def test_frozen_weights_never_train(mini_model: Make) -> None:
    model = mini_model()
    trainable = {id(p) for parameter_set in PARAMETER_SETS for p in model.trainable(parameter_set).values()}
    assert not [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in trainable]


def test_version_0_of_a_component_does_not_depend_on_the_other_tasks(mini_model: Make) -> None:
    alone, all_tasks = mini_model("ask").state("federated"), mini_model().state("federated")
    for name, group in alone.items():
        for key, value in group.items():
            assert np.array_equal(value, all_tasks[name][key]), (name, key)
            assert not key.endswith("lora_B") or not value.any()


def test_more_layers_per_stage_are_more_tensors_of_the_same_components(
    mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    shallow, deep = mini_model("ask"), mini_model("ask", model={"stage_layers": 2})
    assert shallow.components == deep.components
    assert len(deep.state("personal")["mote/attention/text"]) == 2 * len(
        shallow.state("personal")["mote/attention/text"]
    )
    randomise(deep, "personal")
    assert torch.isfinite(deep(batch_of(deep, mini_examples, "ask"), "personal")).all()


def test_a_foundation_with_too_few_layers_is_refused_in_one_line(mini_model: Make) -> None:
    from tap_core.errors import UsageError

    with pytest.raises(UsageError, match="needs 6 layers for the backbone and the foundation has 4; lower it"):
        mini_model("colour", model={"stage_layers": 3})
