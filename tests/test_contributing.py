"""CONTRIBUTING.md: the code that it shows is the code that there is, and the checks that it names exist."""

import re
from pathlib import Path

import pytest
import yaml

from tap_core.settings.toml import tomllib
from tap_core.tasks import KINDS
from tap_core.triggers import DECISIONS, INDICATORS

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL)


def test_four_examples_are_shown_each_with_its_line() -> None:
    assert len(SHOWN) == 7 and len(re.findall(r"^## Add an? ", GUIDE, re.MULTILINE)) == 4


@pytest.mark.parametrize(("path", "code"), SHOWN, ids=[path for path, _ in SHOWN])
def test_what_is_shown_are_lines_of_the_file_in_their_order(path: str, code: str) -> None:
    lines = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert [line for line in code.splitlines() if line and line not in lines] == []  # `in` goes on from the last found


def test_the_entry_points_are_some_that_the_registries_read() -> None:
    examples = [tomllib.loads(example) for example in re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)]
    groups = [group for example in examples if "project" in example for group in example["project"]["entry-points"]]
    assert groups == [KINDS.group, INDICATORS.group, DECISIONS.group]
    (settings,) = (example["algorithm"] for example in examples if "algorithm" in example)
    given = [table for example in examples for table in example.get("project", {}).get("entry-points", {}).values()]
    assert set(settings.values()) <= {name for table in given for name in table}


def test_the_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make (\w+)", GUIDE, re.MULTILINE))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_hooks_before_a_commit_are_the_checks_of_make() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    assert len(hooks) == 4 and [hook["entry"] for hook in hooks if f"\t{hook['entry']}" not in makefile] == []
