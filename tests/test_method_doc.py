"""docs/method.md has every section, step, item and trap that code and tests cite, and says what the code says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tap_core.settings.federation import FederationConfig, LoraRank
from tap_core.settings.per_kind import PerKind

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
FOLDERS = ("protocol", "tap_core", "coordinator", "edge_client", "deploy", "benchmarks", "docs", "examples", "tests")

NAME = r"docs/method\.md"
CITED = re.compile(
    rf"{NAME},? sections? (?P<section>\d+)(?P<more>(?: and \d+)*)"
    r"(?:, (?P<what>steps?|items?|traps?) (?P<items>\d+(?:(?:, | and )\d+)*))?"
    r"(?:, \"(?P<heading>[^\"]+)\")?"
)
"""As in: section 4 · sections 4 and 5 · section 8, trap 10 · section 4, steps 2 and 4 · section 3, "Components"."""


def sections_of(page: str) -> dict[int, str]:
    parts = re.split(r"^## (\d+)\. .*$", page, flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


SECTIONS = sections_of(PAGE)


def items(section: int) -> list[int]:
    return [int(number) for number in re.findall(r"^(\d+)\. ", SECTIONS[section], re.MULTILINE)]


def numbers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


def lacking(text: str) -> Iterator[str]:
    """What ``text`` cites of the page and the page has not."""
    flat = re.sub(r"\s+(?:# )?", " ", text)
    for mention in re.finditer(NAME, flat):
        cited = CITED.match(flat, mention.start())
        if cited is None:
            after = flat[mention.end() : mention.end() + 12]
            if re.search(r"\d|section|trap", after):
                yield f"cannot read the citation {mention.group()}{after}"
            continue
        sections, named = [int(cited["section"]), *numbers(cited["more"])], numbers(cited["items"])
        if not all(number in SECTIONS for number in sections):
            yield cited.group()
            continue
        headings = [cited["heading"]] if cited["heading"] else []
        has_items = all(number in items(sections[-1]) for number in named)
        if not has_items or not all(f"### {heading}\n" in SECTIONS[sections[-1]] for heading in headings):
            yield cited.group()


def test_sections_and_their_items_are_numbered_without_a_gap() -> None:
    assert list(SECTIONS) == list(range(1, 12))
    for section in SECTIONS:
        assert items(section) == list(range(1, len(items(section)) + 1)), section
    assert len(items(8)) == 12


def texts_that_cite() -> list[Path]:
    """All code, tests and pages but this file."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path != Path(__file__)]
    return [path for path in [*files, *ROOT.glob("*.md")] if path.suffix in (".py", ".toml", ".md")]


def test_all_that_is_cited_exists() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in texts_that_cite()}
    assert sum(len(re.findall(NAME, text)) for text in texts.values()) > 40
    assert [f"{name}: {what}" for name, text in texts.items() for what in lacking(text)] == []


def test_no_other_page_of_the_method_is_cited() -> None:
    assert [path for path in texts_that_cite() if "METHOD.md" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("section 8, trap 12", True),
        ("section 8, trap 13", False),
        ("section 8,\n    trap 9)", True),
        ("8, 9)", False),
        ("sections 4 and 5.", True),
        ("sections 4 and 12)", False),
        ("section 12.", False),
        ("section 4, steps 2 and 4", True),
        ("section 4, steps 2 and 6", False),
        ("section 3, item 3)", True),
        ('section 4, "Cohorts"', True),
        ('section 4, "Herds"', False),
        ("section four", False),
        ("section 3, written out", True),
        ("as it reads", True),
    ],
)
def test_a_citation_is_read_in_each_of_its_forms(words: str, holds: bool) -> None:
    assert (list(lacking(f"(docs/method.md {words}")) == []) is holds


@pytest.mark.parametrize(
    ("section", "folder"), [(2, "tasks"), (3, "foundations"), (4, "samplers"), (9, "triggers"), (10, "algorithms")]
)
def test_every_name_of_a_registry_is_told(section: int, folder: str) -> None:
    lines = (ROOT / "tap_core" / folder / "__init__.py").read_text(encoding="utf-8")
    names = re.findall(r'^[A-Z]+\.add\("(\w+)"', lines, re.MULTILINE)
    assert names and [name for name in names if name not in SECTIONS[section].lower()] == []


def test_the_defaults_are_those_of_the_settings() -> None:
    rows = re.findall(r"^\| `([\w.]+)`[^|]*\| (\S+) \|", SECTIONS[6], re.MULTILINE)
    assert len(rows) > 15
    config = FederationConfig.model_validate(
        {"name": "f", "foundation": "f", "tasks": {"t": {"kind": "text_generation", "inputs": ["text"]}}}
    )
    for key, told in rows:
        value: object = config
        for part in key.split("."):
            value = value.of(part) if isinstance(value, PerKind) else getattr(value, part)
        shown = f"{value.rank}/{value.alpha:g}" if isinstance(value, LoraRank) else value
        assert told == (f"{shown:g}" if isinstance(shown, float) else str(shown)), key
