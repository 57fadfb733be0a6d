"""Every family of foundations, and every kind of tower, under the same traps (docs/method.md section 8)."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import mini
import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import tap_core.foundations as registry
from edge_client.inference import predict
from tap_core.algorithms.base import on_wire
from tap_core.algorithms.participant import Participant
from tap_core.components import components_of_task
from tap_core.errors import UsageError
from tap_core.export.directory import TOLERANCE, export_task
from tap_core.foundations import load_foundation
from tap_core.foundations.files import foundation_digest
from tap_core.foundations.preprocessor import Preprocessor
from tap_core.model.adapters import PARAMETER_SETS
from tap_core.model.tap_model import build_model
from tap_core.settings.runtime import Runtime
from tap_core.simulation.in_process import simulate
from tap_core.tasks.batch import TaskBatch

Make = Callable[..., Any]
USED = {  # a tensor of each family without which it is not loaded
    "flava": (".", "text_model.layernorm.weight"),
    "vilt": (".", "encoder.layer.1.attention.attention.key.bias"),
    "vit-bert": ("text", "encoder.layer.1.attention.self.key.bias"),
    "dinov2-minilm": ("vision", "encoder.layer.0.layer_scale1.lambda1"),
    "clip": ("clip", "vision_model.pre_layrnorm.weight"),
    "siglip": ("vision", "embeddings.position_embedding.weight"),
}
EXPORTED = {"vilt": "ask", "dinov2-minilm": "ask", "clip": "letters"}


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write_family(family, tmp_path_factory.mktemp("family") / family)


@pytest.fixture(scope="module")
def whole(directory: Path) -> Any:
    """One model of all tasks, at version 0; a test that fills it puts it back."""
    return build(directory)


@pytest.fixture
def model(whole: Any) -> Any:
    version_0 = whole.state("federated")
    yield whole.eval()
    for parameter_set in PARAMETER_SETS:
        whole.load(parameter_set, version_0)


def build(directory: Path, *tasks: str) -> Any:
    config = mini.mini_settings(directory, model={"stage_layers": 1}, lora={"dropout": 0.1}, rounds={"total": 2})
    model = build_model(config, config.tasks_named(tasks or config.tasks), load_foundation(config.foundation))
    model.preprocessor.facts["shade"] = {"mean": 80.0, "std": 4.0}
    return model


def test_the_saved_tokenizer_decodes_as_the_one_of_training(directory: Path, family: str, tmp_path: Path) -> None:
    """transformers' CLIPTokenizer decodes with a function of Python, which no file carries."""
    tokenizer = load_foundation(str(directory)).tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("red heart", add_special_tokens=False).ids
    for tokens in (ids, ids * 2, [], range(tokenizer.get_vocab_size())):
        texts = [each.decode(list(tokens), skip_special_tokens=True) for each in (tokenizer, saved)]
        assert texts[0] == texts[1] and "</w>" not in texts[0]
    if family == "clip":
        assert saved.decode(ids) == "red heart" and saved.decode([]) == ""


def batch_of(model: Any, task: str, count: int = 4) -> TaskBatch:
    return model.preprocessor.batch(model.tasks[task], mini.mini_data(task).train[:count])


def test_trap_1_loading_is_strict(family: str, directory: Path, tmp_path: Path) -> None:
    """A tensor that is missing is named in one line, and which directory it is missing from."""
    where, tensor = USED[family]
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    weights = copy / where / "model.safetensors"
    tensors = load_file(weights)
    del tensors[tensor]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 tensors of .*; fetch its files again") as caught:
        load_foundation(str(copy))
    assert "\n" not in str(caught.value) and str(weights.parent) in str(caught.value)
    assert foundation_digest(str(copy)) != foundation_digest(str(directory))


def test_trap_1_what_is_loaded_is_what_the_model_holds(model: Any, directory: Path, randomise: Make) -> None:
    randomise(model, "federated")
    state = model.state("federated")
    other = build(directory)
    other.load("federated", state)
    assert set(state) == set(other.components)
    for name, group in other.state("federated").items():
        assert group.keys() == state[name].keys()
        assert all(np.array_equal(value, state[name][key]) for key, value in group.items())


@pytest.mark.parametrize(
    ("task", "modality"),
    [("colour", "image"), ("letters", "text"), ("redraw", "image"), ("ask", "image"), ("ask", "text")],
)
def test_trap_2_the_output_changes_when_an_input_changes(model: Any, randomise: Make, task: str, modality: str) -> None:
    randomise(model, "personal")
    batch = batch_of(model, task)
    before = model(batch, "personal")
    if modality == "image":
        batch.image.copy_(batch.image.flip(0) + 1)
    else:
        word = batch.input_ids[:, 1]
        word.copy_(torch.where(word == 7, 8, 7))
    after = model(batch, "personal")
    assert (before - after).abs().amax(dim=tuple(range(1, before.ndim))).min() > 1e-4


def test_trap_3_a_forward_pass_touches_exactly_the_components_that_the_task_uses(model: Any, randomise: Make) -> None:
    """And every tensor of them."""
    randomise(model, "federated")
    for task in model.tasks.values():
        for parameter_set in PARAMETER_SETS:
            for parameter in model.trainable(parameter_set).values():
                parameter.grad = None
        model(batch_of(model, task.name), "federated").square().sum().backward()
        used = set(components_of_task(task))
        expected = {key for key in model.trainable("federated") if key.split(":")[0] in used}
        assert {key for key, p in model.trainable("federated").items() if p.grad is not None} == expected
        assert all(p.grad is None for p in model.trainable("personal").values())
    for parameter in model.trainable("federated").values():
        parameter.grad = None


def test_trap_4_a_replacement_changes_exactly_what_the_task_uses(model: Any, randomise: Make) -> None:
    """An image task leaves the text encoder alone, also where the two are parts of one pretrained model."""
    randomise(model, "federated")
    before, trained = model.state("personal"), model.state("federated")
    used = components_of_task(model.tasks["colour"])
    model.load("personal", {**before, **{name: trained[name] for name in used}})
    changed = {
        name
        for name, group in model.state("personal").items()
        if any(not np.array_equal(value, before[name][key]) for key, value in group.items())
    }
    assert changed == {name for name in used if before[name]} and "encoder/text" not in changed


def test_trap_7_with_b_zero_the_tokens_are_those_of_transformers(family: str, model: Any, directory: Path) -> None:
    batch = batch_of(model, "ask")
    with torch.no_grad():
        image = model.encoders["image"](batch.image, None, "personal")
        mask = batch.attention_mask.bool()
        text = model.encoders["text"](batch.input_ids, mask, "personal")
        project = model.encoders["text"].projections
        ours, theirs = (image, text), transformers_tokens(family, directory, batch, model)
        if project:
            theirs = (theirs[0], project["personal"](theirs[1]))
    for given, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def transformers_tokens(family: str, directory: Path, batch: TaskBatch, model: Any) -> tuple[Any, Any]:
    """What goes into the backbone, by the original models."""
    from transformers import AutoModel, FlavaModel, SiglipTextModel, ViltModel

    ids, mask, pixels = batch.input_ids, batch.attention_mask, batch.image
    if family == "flava":
        plain = FlavaModel.from_pretrained(directory).eval()
        image = plain.image_to_mm_projection(plain.image_model(pixels).last_hidden_state)
        text = plain.text_model(ids, attention_mask=mask).last_hidden_state
        return image, plain.text_to_mm_projection(text)
    if family == "vilt":
        plain = ViltModel.from_pretrained(directory).eval()
        with pytest.MonkeyPatch.context() as patch:  # it draws the order of the patches; ours is theirs
            patch.setattr(torch, "multinomial", lambda weights, count: torch.arange(count))
            whole = torch.ones(len(pixels), 16, 16)
            both, _ = plain.embeddings(ids, mask, None, pixels, whole, None, None)
        return both[:, ids.shape[1] :], both[:, : ids.shape[1]]
    sub = {"clip": ("clip", "clip")}.get(family, ("vision", "text"))
    vision = AutoModel.from_pretrained(directory / sub[0]).eval()
    text_class = SiglipTextModel if family == "siglip" else AutoModel
    text = text_class.from_pretrained(directory / sub[1]).eval()
    vision, text = getattr(vision, "vision_model", vision), getattr(text, "text_model", text)
    hidden = vision(pixels, output_hidden_states=True).hidden_states
    kept = len(model.encoders["image"].encoder.blocks)
    assert len(hidden) == 5 and kept == 2  # of four layers the last two are the backbone's
    return hidden[kept], text(ids, attention_mask=mask).last_hidden_state


def test_trap_7_with_b_zero_what_a_holds_does_not_matter(model: Any) -> None:
    batch = batch_of(model, "ask")
    with torch.no_grad():
        before = model.encode(batch, "federated").values
        for key, parameter in model.trainable("federated").items():
            if key.endswith("lora_A"):
                parameter.fill_(3.0)
        after = model.encode(batch, "federated").values
    assert torch.equal(before, after)
    assert any(isinstance(module, LoraLayer) for module in model.encoders["image"].modules())


def test_padding_does_not_reach_the_output(model: Any, randomise: Make) -> None:
    randomise(model, "personal")
    for task in ("letters", "ask"):
        batch = batch_of(model, task)
        pad = torch.nn.functional.pad
        ids = pad(batch.input_ids, (0, 4), value=model.preprocessor.special.pad)
        padded = TaskBatch(batch.task, batch.image, ids, pad(batch.attention_mask, (0, 4)), batch.target)
        torch.testing.assert_close(model(padded, "personal"), model(batch, "personal"), rtol=1e-4, atol=1e-5)


def test_trap_9_the_frozen_weights_are_loaded_once_and_stay_once_in_memory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    loads = []
    original = PreTrainedModel.from_pretrained.__func__

    def counted(cls: Any, path: Any, *args: Any, **options: Any) -> Any:
        loads.append(path)
        return original(cls, path, *args, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    registry._load.cache_clear()
    first, second = build(directory, "letters"), build(directory, "letters")
    files = [*directory.rglob("*.safetensors")]
    assert len(loads) == len(files) and len(set(loads)) == len(files)
    frozen = [{p.data_ptr() for p in m.parameters() if not p.requires_grad and p.numel()} for m in (first, second)]
    assert frozen[0] and frozen[0] == frozen[1]


def test_frozen_weights_never_train_and_are_the_same_while_the_model_trains(model: Any) -> None:
    trainable = {id(p) for parameter_set in PARAMETER_SETS for p in model.trainable(parameter_set).values()}
    assert not [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in trainable]
    batch = batch_of(model, "ask")
    with torch.no_grad():
        before = model.encode(batch, "federated").values
        after = model.train().encode(batch, "federated").values  # B is 0, so that LoRA's dropout does not show
    assert torch.equal(before, after)


def test_version_0_is_a_function_of_the_seed_alone(model: Any, directory: Path) -> None:
    torch.manual_seed(99)
    registry._load.cache_clear()
    alone, together = build(directory, "ask").state("federated"), model.state("federated")
    for name, group in alone.items():
        for key, value in group.items():
            assert np.array_equal(value, together[name][key]), (name, key)
            assert np.isfinite(value).all() and (not key.endswith("lora_B") or not value.any())


def test_a_small_federation_of_all_kinds_runs_and_its_export_predicts_without_torch(
    directory: Path, tmp_path: Path, family: str
) -> None:
    """What is exported is all that differs between families: both embeddings, a new projection, a causal encoder."""
    devices = {"a": ("ask", "colour", "letters", "shade"), "b": ("ask", "letters", "marks", "redraw")}
    config = mini.mini_settings(
        directory,
        model={"stage_layers": 1},
        rounds={"total": 1},
        training={"steps": 1},
        algorithm={"distillation": {"steps": 1}},
    )
    foundation = load_foundation(config.foundation)
    participants = {}
    for device, tasks in devices.items():
        data = {task: mini.mini_data(task, 6, 2, seed=ord(device)) for task in tasks}
        model = build_model(config, config.tasks_named(tasks), foundation)
        participants[device] = Participant(config, device, model, data, Runtime(device="cpu", threads=1))
    start = on_wire(build_model(config, config.tasks_named(config.tasks), foundation).state("federated"), "float32")
    result = simulate(config, participants, start)
    moved = [name for name in start if any((result.components[name][k] != v).any() for k, v in start[name].items())]
    assert {"mome/attention/shared", "decoder/ask", "encoder/image"} < set(moved)
    assert ("encoder/text" in moved) == (family != "vilt")  # whose words are embedded and no more
    participant = participants["b"]
    participant.model.load("personal", result.devices["b"].state.personal)
    if (task := EXPORTED.get(family)) is not None:
        examples = mini.mini_data(task, 4, 1).train
        assert export_task(participant.model, task, tmp_path / task, examples[:3]) <= TOLERANCE
        given = {"text": examples[3].text}
        if examples[3].image is not None:
            Image.fromarray(examples[3].image).save(tmp_path / "image.png")
            given["image"] = tmp_path / "image.png"
        answer = predict(tmp_path / task, **given, threads=1)
        assert isinstance(answer["answer"], str) if task == "ask" else answer["label"] in ("low", "high")


def test_the_number_of_layers_is_the_familys_own_unless_the_settings_say(tmp_path: Path) -> None:
    families.write_vilt(tmp_path / "vilt", layers=8)
    foundation = load_foundation(str(tmp_path / "vilt"))
    assert [len(foundation.split(layers)[1]) for layers in (None, 1, 4)] == [8, 2, 8]
    with pytest.raises(UsageError, match="stage_layers = 5 needs 10 layers for the backbone and the foundation has 8"):
        foundation.split(5)


def test_as_many_encoder_layers_as_there_are_is_all_of_them(directory: Path, family: str) -> None:
    foundation = load_foundation(str(directory))
    deepest = max(len(encoder.blocks) for encoder in foundation.split(1)[0].values())

    def names(layers: int | None) -> list[str]:
        config = mini.mini_settings(directory, model={"stage_layers": 1}, lora={"encoder_layers": layers})
        return sorted(build_model(config, config.tasks_named(["ask"]), foundation).trainable("personal"))

    assert deepest == 0 or names(deepest) == names(None) != names(1)
    with pytest.raises(UsageError) as caught:
        names(deepest + 1)
    said = (
        "have no layers; leave it out"
        if family == "vilt"
        else f"have {deepest} layers at most; lower it, or leave it out"
    )
    assert said in str(caught.value) and f"the encoders of a {foundation.family} foundation" in str(caught.value)


def test_lora_on_patches_is_pefts_lora_on_the_convolution(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import ViltModel

    directory = families.write_family("vilt", tmp_path / "vilt")
    model = build(directory, "colour").eval()
    ours = model.trainable("personal")
    a, b = (ours[f"encoder/image:patch.lora_{matrix}"] for matrix in "AB")
    torch.manual_seed(1)
    torch.nn.init.normal_(b, std=0.1)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["projection"])
    plain = get_peft_model(ViltModel.from_pretrained(directory), settings).eval()
    projection = plain.base_model.model.embeddings.patch_embeddings.projection
    projection.lora_A["default"].weight.data = a.detach().reshape(projection.lora_A["default"].weight.shape)
    projection.lora_B["default"].weight.data = b.detach()[..., None, None]
    pixels = batch_of(model, "colour").image
    with torch.no_grad():
        theirs = projection(pixels).flatten(2).transpose(1, 2)
        embed = model.encoders["image"].encoder.embed
        ours_all = model.encoders["image"](pixels, None, "personal")
        torch.testing.assert_close(ours_all, embed(theirs), rtol=1e-4, atol=1e-4)
    assert a.abs().max() <= 1 / np.sqrt(3 * 8 * 8) and a.std() > 0.4 / np.sqrt(3 * 8 * 8)  # its own fan-in


def test_a_new_projection_is_each_sets_own(directory: Path, family: str, model: Any) -> None:
    if family != "dinov2-minilm":
        assert not [key for key in model.trainable("personal") if "project" in key]
        return
    names = ["encoder/text:project.bias", "encoder/text:project.weight"]
    assert [key for key in model.trainable("personal") if "project" in key] == names
    batch = batch_of(model, "letters")
    with torch.no_grad():
        before = {parameter_set: model(batch, parameter_set) for parameter_set in PARAMETER_SETS}
        model.trainable("personal")["encoder/text:project.weight"].mul_(2)
        after = {parameter_set: model(batch, parameter_set) for parameter_set in PARAMETER_SETS}
    assert torch.equal(before["federated"], after["federated"])
    assert not torch.equal(before["personal"], after["personal"])


def test_the_special_tokens_are_the_tokenizers_own(family: str, directory: Path) -> None:
    """SigLIP has no token that starts a text, so its padding, which ends a text too, starts an answer."""
    foundation = load_foundation(str(directory))
    names = {"clip": ("<|endoftext|>", "<|startoftext|>", "<|endoftext|>"), "siglip": ("</s>", "</s>", "</s>")}
    special = foundation.special
    found = tuple(foundation.tokenizer.id_to_token(i) for i in (special.pad, special.start, special.end))
    assert found == names.get(family, ("[PAD]", "[CLS]", "[SEP]"))
    preprocessor = Preprocessor(foundation, text_length=16)
    (answer,) = preprocessor.answers(["red"], 5, padding=-1)
    assert answer[0] == special.start and answer[-1] == special.end and preprocessor.decode(answer) == "red"
