"""How a command ends when something is wrong, and what every program knows."""

from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from coordinator.cli import app as tap_coordinator
from deploy.tap.cli import app as tap
from edge_client.cli import app as tap_client
from tap_core.command_line import one_line_errors
from tap_core.errors import TapError, UsageError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TapError("the round failed; serve again"), 1, "error: the round failed; serve again"),
        (UsageError("no such key; remove it"), 2, "error: no such key; remove it"),
        (
            PermissionError(13, "Permission denied", "/var/lib/tap/state"),
            1,
            "error: /var/lib/tap/state: Permission denied; mend that and run the command again",
        ),
        (
            OSError(28, "No space left on device"),
            1,
            "error: No space left on device; mend that and run the command again",
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error: Exception, code: int, said: str) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @one_line_errors
    def command() -> None:
        raise error

    done = CliRunner().invoke(app, [])
    assert (done.exit_code, done.stderr) == (code, f"{said}\n")


def test_a_mistake_of_ours_is_not_hidden(tmp_path: Path) -> None:
    @one_line_errors
    def command() -> None:
        raise KeyError("name")

    with pytest.raises(KeyError):
        command()


@pytest.mark.parametrize("program", [tap, tap_coordinator, tap_client])
def test_every_program_tells_its_version(program: typer.Typer) -> None:
    result = CliRunner().invoke(program, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"tap-edge {version('tap-edge')}\n")
