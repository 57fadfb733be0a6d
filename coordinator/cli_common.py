"""What the commands of `tap-coordinator` share: their arguments, the store of a directory, files that hold a secret.

It knows how commands are written; what a command does is its own business.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from coordinator.config import ServiceSettings, StatePaths, load_settings
from coordinator.database import connect
from coordinator.founding import check_identity
from coordinator.privacy import keep_private
from coordinator.store import Store
from tap_core.errors import TapError, UsageError
from tap_core.files import new_file
from tap_core.manifest import load_manifest
from tap_core.settings.base import NAME_PATTERN

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Federation directory, made by tap init.")]
Database = Annotated[str | None, typer.Option(help=str(ServiceSettings.model_fields["database"].description))]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Last = Annotated[int | None, typer.Option(help="Only so many, the newest.", min=1)]


@contextlib.contextmanager
def opened_store(directory: Path, database: str | None) -> Iterator[tuple[Store, StatePaths]]:
    """The store of a federation directory, whether or not it is being served."""
    settings = load_settings({"database": database})
    manifest = load_manifest(directory)
    paths = StatePaths(directory)
    paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_private(directory)
    store = Store(connect(paths.database_url(settings.database)), manifest.config.name)
    try:
        check_identity(paths, store)
        yield store, paths
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        raise TapError(f"the database cannot be read or written: {why}; nothing was changed, try again") from None
    finally:
        store.close()


@contextlib.contextmanager
def secret_written(path: Path | None, secret: str) -> Iterator[None]:
    """Write the file of a token or code (mode 0600), but put it in place only if the body succeeds."""
    if path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(new_file(path, mode=0o600))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        file.write(f"{secret}\n".encode())
        file.flush()
        yield


def require_name(name: str, what: str) -> None:
    """Raise UsageError if the name is none for a ``what`` ("device", "operator")."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{name!r} is no {what} name: a-z, 0-9, '_' and '-', 64 characters at most")


def show_secret(whose: dict[str, str], kind: str, secret: str, path: Path | None, as_json: bool) -> None:
    """Print a secret (``kind``: "token" or "code"), or where it was written."""
    if path is None:
        typer.echo(json.dumps({**whose, kind: secret}) if as_json else secret)
    elif as_json:
        typer.echo(json.dumps({**whose, f"{kind}_file": str(path)}))
    else:
        typer.echo(f"{next(iter(whose.values()))}: {kind} written to {path}")
