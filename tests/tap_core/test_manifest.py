"""Reading `manifest.json`: what is not one is told in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tap_core.errors import UsageError
from tap_core.manifest import MANIFEST_NAME, FederationManifest, load_manifest


@pytest.fixture
def directory(tmp_path: Path, mini_config: Callable[..., Any]) -> Path:
    FederationManifest(config=mini_config(), foundation_digest="f" * 64, components={}).save(tmp_path)
    return tmp_path


def test_what_was_saved_is_read(directory: Path, mini_config: Callable[..., Any]) -> None:
    expected = mini_config().model_copy(update={"foundation": "sha256:" + "f" * 64})  # it is a directory
    assert load_manifest(directory).config == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "manifest.json"),
    ],
)
def test_what_is_no_manifest_is_one_line(directory: Path, content: bytes, said: str) -> None:
    (directory / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        load_manifest(directory)
    assert "\n" not in str(caught.value)


def test_another_schema_is_told_before_its_keys_are(directory: Path) -> None:
    values = json.loads((directory / MANIFEST_NAME).read_text())
    values |= {"schema_version": 99, "what_schema_99_has": True}
    (directory / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(UsageError, match="has schema 99 and this version reads 2; run tap init again"):
        load_manifest(directory)
