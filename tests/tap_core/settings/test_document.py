"""Every setting of a federation is described, and docs/settings.md says what the models say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tap_core.algorithms import ALGORITHMS
from tap_core.settings.base import AlgorithmSettings
from tap_core.settings.document import model_inside, page, values
from tap_core.settings.federation import FederationConfig, ModelConfig, RoundsConfig, TaskConfig

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def tables(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        inside = model_inside(field.annotation)
        if inside is not None:
            yield from tables(inside)


ALGORITHM_TABLES = {
    table
    for algorithm in ALGORITHMS.values()
    if algorithm.Settings is not AlgorithmSettings
    for table in tables(algorithm.Settings)
}
TABLES = sorted({*tables(FederationConfig), *ALGORITHM_TABLES}, key=lambda table: table.__name__)


def test_all_tables_are_found() -> None:
    assert {"FederationConfig", "TaskConfig", "LoraRank", "Betas", "WireConfig"} <= {table.__name__ for table in TABLES}


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_described(table: type[BaseModel]) -> None:
    lacking = [name for name, field in table.model_fields.items() if not (field.description or "").strip()]
    assert lacking == []


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n", "run make settings"


@pytest.mark.parametrize(
    ("table", "name", "words"),
    [
        (RoundsConfig, "trim", "number, above 0, below 0.5"),
        (RoundsConfig, "max_update_norm", "text"),
        (ModelConfig, "stage_layers", "whole number, 1 or more"),
        (TaskConfig, "inputs", 'list of `"image"` or `"text"`'),
    ],
)
def test_types_and_limits_are_told_in_words(table: type[BaseModel], name: str, words: str) -> None:
    assert values(table.model_fields[name]) == words
