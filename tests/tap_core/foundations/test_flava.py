"""Finding and loading the frozen weights: what is refused, and in which words."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tap_core.errors import UsageError
from tap_core.foundations import load_foundation
from tap_core.foundations.files import foundation_digest


@pytest.fixture
def copy(mini_foundation: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mini_foundation, tmp_path / "copy"))


def test_a_directory_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"holds no weights; put the model's model\.safetensors there"):
        load_foundation(str(copy))


def test_missing_tensors_are_refused_and_counted(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["text_model.layernorm.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 tensors of FLAVA, text_model\.layernorm\.weight first"):
        load_foundation(str(copy))


def test_a_truncated_file_is_refused(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="cannot be loaded") as caught:
        load_foundation(str(copy))
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for family in ("bert", None, ["flava"]):
        (copy / "config.json").write_text(json.dumps({**config, "model_type": family}))
        said = re.escape(f"model_type {family!r}; one of flava, vilt, dual is needed: take another model")
        with pytest.raises(UsageError, match=said):
            load_foundation(str(copy))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json cannot be loaded"),
        ("config.json", b"[]", "config.json cannot be loaded"),
        ("config.json", b"\xff\xfe", "config.json cannot be loaded"),
        ("config.json", b'{"model_type": "flava", "image_config": 7}', "cannot be loaded"),
        ("tokenizer.json", b"{}", "tokenizer.json cannot be loaded"),
        ("tokenizer.json", b"\xff", "tokenizer.json cannot be loaded"),
        ("preprocessor_config.json", b"{", "preprocessor_config.json cannot be loaded"),
        *(
            ("preprocessor_config.json", b'{"image_mean": [0, 0.5, 1], "image_std": [1, 1, 1], ' + change + b"}", said)
            for change, said in (
                (b'"image_mean": "x"', "image_mean is 'x' and must be three numbers"),
                (b'"image_mean": "abc"', "image_mean is 'abc' and must be three numbers"),
                (b'"image_mean": [0, 0]', r"image_mean is \[0, 0\] and must be three numbers"),
                (b'"image_mean": [0, 0, NaN]', r"image_mean is \[0, 0, nan\] and must be three numbers"),
                (b'"image_std": [1, 1, null]', r"image_std is \[1, 1, None\] and must be three numbers"),
                (b'"image_std": [1, 0, 1]', r"image_std is \[1, 0, 1\] and must be above 0"),
                (b'"image_processor": 1', "image_processor is no JSON object"),
            )
        ),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(copy: Path, name: str, content: bytes, said: str) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        load_foundation(str(copy))
    assert "\n" not in str(caught.value) and "fetch the model's files again" in str(caught.value)


def test_without_config_json_that_is_said_first(copy: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (copy / name).unlink()
    with pytest.raises(UsageError, match=r"holds no config\.json; put the model's config\.json there"):
        load_foundation(str(copy))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", r"config\.json cannot be loaded \(.*\); fetch the model's files again"),
        ("[" * 99999, r"config\.json cannot be loaded \(.*\); fetch the model's files again"),
        ("[]", r"config\.json cannot be loaded \(no JSON object\); fetch the model's files again"),
        ('{"model_type": "bert"}', r"config\.json has model_type 'bert'; one of flava, vilt, dual is needed"),
    ],
)
@pytest.mark.parametrize("use", [load_foundation, foundation_digest])
def test_a_wrong_config_json_is_said_before_missing_weights(copy: Path, use: Any, config: str, said: str) -> None:
    (copy / "config.json").write_text(config)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=said) as caught:
        use(str(copy))
    assert "\n" not in str(caught.value)


def test_of_a_file_its_directory_is_asked_for(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.safetensors' is a file; give its directory"):
        load_foundation(str(copy / "model.safetensors"))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_a_path_that_is_no_directory_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="no such directory; give a directory or a hub id"):
        load_foundation(source)


def test_a_hub_id_that_cannot_be_had_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="cannot be had from the hub") as caught:
        load_foundation("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_digest_is_of_the_weights_and_of_what_reads_words_and_pixels(mini_foundation: Path, copy: Path) -> None:
    assert foundation_digest(str(copy)) == foundation_digest(str(mini_foundation))
    (copy / "README.md").write_text("other")
    assert foundation_digest(str(copy)) == foundation_digest(str(mini_foundation))
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        before = (copy / name).read_text() if (copy / name).exists() else ""
        (copy / name).write_text(before + " ")
        assert foundation_digest(str(copy)) != foundation_digest(str(mini_foundation)), name
        (copy / name).write_text(before) if before else (copy / name).unlink()
    assert foundation_digest(str(copy)) == foundation_digest(str(mini_foundation))
    tensors = load_file(copy / "model.safetensors")
    tensors["text_model.layernorm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert foundation_digest(str(copy)) != foundation_digest(str(mini_foundation))
