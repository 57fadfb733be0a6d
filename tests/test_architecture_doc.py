"""docs/architecture.md names every package, and files and names that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("protocol", "tap_core", "coordinator", "edge_client", "deploy")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    lines = [line for line in PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_package_has_a_paragraph() -> None:
    assert [name for name in (*PACKAGES, "benchmarks", "tests") if f"**{name}/**" not in PAGE] == []


def test_every_folder_of_the_method_is_in_the_picture() -> None:
    picture = PAGE.split("```text", 1)[1].split("```", 1)[0]
    folders = [path.parent.name for path in (ROOT / "tap_core").glob("*/__init__.py")]
    assert len(folders) > 7 and [name for name in folders if name not in picture] == []


@pytest.mark.parametrize(("looking_for", "file", "name"), rows("Where is ...?"))
def test_what_is_looked_for_is_there(looking_for: str, file: str, name: str) -> None:
    assert name.strip("`") in (ROOT / file.strip("`")).read_text(encoding="utf-8"), looking_for


def test_files_that_are_named_exist() -> None:
    round_of = PAGE.split("## A round through the files", 1)[1].split("## ", 1)[0]
    left = {name for name in re.findall(r"^ (\w+\.py)", round_of, re.MULTILINE)}
    assert len(left) > 7 and [name for name in left if not (ROOT / "coordinator" / name).is_file()] == []
    right = set(re.findall(r"(?:  |▶ )(\w+\.py)", round_of)) - left
    assert {"agent.py", "worker.py"} <= right
    assert [name for name in right if not (ROOT / "edge_client" / name).is_file()] == []
    paths = re.findall(r"\b(?:protocol|tap_core|coordinator|edge_client)/[\w/]+\.py", PAGE)
    places = [path for path in paths if not path.endswith("/NAME.py")]
    assert len(places) > 50 and [path for path in places if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize(("thing", "file", "line", "group"), rows("Where a new thing goes"))
def test_a_new_thing_goes_where_others_are(thing: str, file: str, line: str, group: str) -> None:
    if group == "none":
        return
    where, path = re.findall(r"`([^`]+)`", line)
    text = (ROOT / path).read_text(encoding="utf-8")
    assert f"\n{where}(" in text and f'"{group.strip("`")}"' in text
    assert len(list((ROOT / Path(path).parent).glob("*.py"))) > 1, thing
