"""CONTRIBUTING.md: the code that it shows is the code that there is, and the checks that it names exist."""

import re
from pathlib import Path

import pytest
import yaml

from tap_core.settings.toml import tomllib
from tap_core.tasks import KINDS

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL)


def test_three_examples_are_shown_each_with_its_line() -> None:
    assert len(SHOWN) == 6 and len(re.findall(r"^## Add an? ", GUIDE, re.MULTILINE)) == 3


@pytest.mark.parametrize(("path", "code"), SHOWN, ids=[path for path, _ in SHOWN])
def test_what_is_shown_are_lines_of_the_file_in_their_order(path: str, code: str) -> None:
    lines = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert [line for line in code.splitlines() if line and line not in lines] == []  # `in` goes on from the last found


def test_the_entry_point_is_one_that_the_registry_reads() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert list(tomllib.loads(example)["project"]["entry-points"]) == [KINDS.group]


def test_the_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make (\w+)", GUIDE, re.MULTILINE))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_hooks_before_a_commit_are_the_checks_of_make() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    assert len(hooks) == 4 and [hook["entry"] for hook in hooks if f"\t{hook['entry']}" not in makefile] == []
