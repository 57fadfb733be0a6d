"""docs/foundations.md: its commands run, its lines of code are the code's, and every family is in its table."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.tap.cli import app
from tap_core.foundations import FOUNDATIONS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "foundations.md").read_text(encoding="utf-8")


def test_every_family_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(FOUNDATIONS)


def test_its_lines_of_code_are_the_codes() -> None:
    quoted = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(quoted) == 2
    for name, lines in quoted:
        assert lines in (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("command", re.findall(r"^\$ tap (.*)$", PAGE, re.MULTILINE))
def test_its_commands_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
    assert result.exit_code == 0 and "a step, estimated" in result.stdout
