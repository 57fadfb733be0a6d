"""The commands `tap-coordinator operator ...`: who may use the HTTP plane. They know arguments and how facts are shown.

Like the others they work on the store, and so whether or not the service runs.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.audit import clock, user_of_the_host
from coordinator.cli_common import AsJson, Database, Directory, opened_store, require_name, secret_written, show_secret
from coordinator.durations import seconds_of
from coordinator.identity import OPERATOR, new_token, token_digest
from coordinator.operator_registry import ROLES, Operator, OperatorRegistry
from tap_core.command_line import one_line_errors
from tap_core.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Tokens for the HTTP plane: add, list and revoke operators.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator's name: a person or a program.")]


@app.command(
    epilog="Example: tap-coordinator operator add prometheus federation --role read --token-file prometheus.token"
)
@one_line_errors
def add(
    name: Name,
    directory: Directory,
    role: Annotated[str, typer.Option(help="read: see everything; write: act as well.")],
    expires: Annotated[str | None, typer.Option(help="Token is void after so long (90d, 12h, 30m); never.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Write it here (mode 0600); do not print it.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make a token for the HTTP plane, which is shown this once: only its hash is stored."""
    require_name(name, "operator")
    chosen = next((known for known in ROLES if known == role), None)
    if chosen is None:
        raise UsageError(f"--role {role!r} is neither 'read' nor 'write'")
    if token_file is not None and token_file.exists():
        raise UsageError(f"{token_file} exists and may hold another token; give another --token-file")
    token, now = new_token(OPERATOR), time.time()
    until = now + seconds_of(expires, "--expires") if expires else None
    with opened_store(directory, database) as (store, _), secret_written(token_file, token):
        registry = OperatorRegistry(store.engine, store.federation)
        registry.add(name, token_digest(token), chosen, now, expires_at=until, actor=user_of_the_host())
    show_secret({"operator": name}, "token", token, token_file, as_json)


@app.command("list", epilog="Example: tap-coordinator operator list federation --json")
@one_line_errors
def list_operators(directory: Directory, database: Database = None, as_json: AsJson = False) -> None:
    """List the operators that were ever added."""
    with opened_store(directory, database) as (store, _):
        rows = [_facts(operator, time.time()) for operator in OperatorRegistry(store.engine, store.federation).all()]
    if as_json:
        typer.echo(json.dumps(rows))
    for row in [] if as_json else rows:
        until = "" if row["expires_at"] is None else f", until {clock(row['expires_at'])}"
        typer.echo(f"{row['operator']:<24} {row['role']:<6} {row['state']:<8} added {clock(row['created_at'])}{until}")


@app.command(epilog="Example: tap-coordinator operator revoke prometheus federation")
@one_line_errors
def revoke(name: Name, directory: Directory, database: Database = None) -> None:
    """Void an operator's token."""
    with opened_store(directory, database) as (store, _):
        OperatorRegistry(store.engine, store.federation).revoke(name, time.time(), actor=user_of_the_host())
        typer.echo(f"{name}: revoked")


def _facts(operator: Operator, at: float) -> dict[str, Any]:
    facts = asdict(operator)
    del facts["token_sha256"]
    state = "valid" if operator.is_valid(at) else "expired" if operator.revoked_at is None else "revoked"
    return {"operator": facts.pop("name"), "state": state, **facts}
