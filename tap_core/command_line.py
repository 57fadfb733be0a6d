"""What all commands have in common: how they show that they work, and how they end if something is wrong. No torch."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console

from tap_core.errors import TapError

P = ParamSpec("P")
R = TypeVar("R")


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a typer command: a TapError becomes ``error: ...`` and its exit code (2 for usage, 1 otherwise).

    So does an OSError that nobody expected, such as a file of another user (1).
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TapError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename}: "
            typer.echo(f"error: {where}{error.strerror or error}; mend that and run the command again", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("error: interrupted", err=True)
            raise typer.Exit(130) from None

    return run


def working(what: str) -> AbstractContextManager[object]:
    """Show on a terminal, and nowhere else, that the command is at work on ``what``."""
    return Console(stderr=True).status(f"{what} ...")
