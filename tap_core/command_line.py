"""What all commands have in common: how they show that they work, and how they end if something is wrong. No torch."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from tap_core.errors import TapError

P = ParamSpec("P")
R = TypeVar("R")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tap-edge {version('tap-edge')}")
        raise typer.Exit


def make_app(about: str) -> typer.Typer:
    """A program of several commands, to be added with ``@app.command()``. It knows ``--version``."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=about)
    option = typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)

    @app.callback()
    def program(version: Annotated[bool, option] = False) -> None: ...

    return app


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
