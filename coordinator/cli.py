"""The command `tap-coordinator`. It knows arguments and how facts are printed; each command hands over to one function.

Commands other than `serve` work on the store, and so whether or not the service runs.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator import cli_operators
from coordinator.audit import clock, entries, user_of_the_host
from coordinator.cli_common import (
    AsJson,
    Database,
    Directory,
    Last,
    opened_store,
    require_name,
    secret_written,
    show_secret,
)
from coordinator.cohorts import statement, tasks_by_device
from coordinator.config import ServiceSettings, StatePaths, load_settings
from coordinator.device_registry import MAX_EXAMPLES
from coordinator.durations import seconds_of
from coordinator.identity import new_code, new_token, token_digest
from coordinator.lock import is_locked, serving_lock
from coordinator.repair import roll_back
from coordinator.standing import enrolled_facts, recorded
from coordinator.verify import blobs_of
from coordinator.verify import verify as verify_all
from tap_core.command_line import make_app, one_line_errors, working
from tap_core.errors import TapError, UsageError, did_you_mean
from tap_core.manifest import load_manifest
from tap_core.names import DeviceName, TaskName
from tap_core.settings.federation import FederationConfig

STOP_SECONDS = 30.0

app = make_app("Serve a federation of devices, and look after it.")
app.add_typer(cli_operators.app, name="operator")


def _help(name: str) -> str:
    field = ServiceSettings.model_fields[name]
    return f"{field.description} [default: {field.default}]"


@app.command(epilog="Example: tap-coordinator serve federation --host 0.0.0.0 --port 8710")
@one_line_errors
def serve(
    directory: Directory,
    host: Annotated[str | None, typer.Option(help=_help("host"))] = None,
    port: Annotated[int | None, typer.Option(help=_help("port"))] = None,
    http_host: Annotated[str | None, typer.Option(help=_help("http_host"))] = None,
    http_port: Annotated[int | None, typer.Option(help=_help("http_port"))] = None,
    http_allowed_host: Annotated[
        list[str] | None, typer.Option(help="Host name by which the operator plane may be called; repeat it for more.")
    ] = None,
    database: Database = None,
    tls_cert: Annotated[str | None, typer.Option(help=_help("tls_cert"))] = None,
    tls_key: Annotated[str | None, typer.Option(help=_help("tls_key"))] = None,
    tls_client_ca: Annotated[str | None, typer.Option(help=_help("tls_client_ca"))] = None,
    wait_for_database: Annotated[float | None, typer.Option(help=_help("wait_for_database"))] = None,
    max_connections: Annotated[int | None, typer.Option(help=_help("max_connections"))] = None,
    transfer_memory: Annotated[int | None, typer.Option(help=_help("transfer_memory"))] = None,
    threads: Annotated[int | None, typer.Option(help=_help("threads"))] = None,
    log_level: Annotated[str | None, typer.Option(help=_help("log_level"))] = None,
    exit_when_done: Annotated[bool, typer.Option(help="Exit when every enrolled device is done.")] = False,
) -> None:
    """Run the coordinator until SIGTERM, Ctrl-C or tap-coordinator stop. Whatever ends it, a new start goes on."""
    from coordinator import service  # the web servers take a second to load, and only this command needs them

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "http_host": http_host,
        "http_port": http_port,
        "database": database,
        "transfer_memory": transfer_memory,
    }
    given |= {"http_allowed_hosts": ",".join(http_allowed_host) if http_allowed_host else None}
    given |= {"tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca}
    given["wait_for_database"] = wait_for_database
    given_more = {"max_connections": max_connections, "threads": threads, "log_level": log_level}
    settings = load_settings({**given, **given_more})
    service.configure_logs(settings.log_level)
    asyncio.run(service.serve(directory, settings, exit_when_done=exit_when_done))


@app.command(
    epilog="Example: tap-coordinator enroll kitchen-1 federation --token-file kitchen-1.token | "
    "tap-coordinator enroll kitchen-2 federation --code --expires 90d"
)
@one_line_errors
def enroll(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's name.")],
    directory: Directory,
    token_file: Annotated[Path | None, typer.Option(help="Write it here (mode 0600); do not print it.")] = None,
    renew: Annotated[bool, typer.Option(help="Replace the token of a device that is enrolled already.")] = False,
    expires: Annotated[str | None, typer.Option(help="Token is void after so long (90d, 12h, 30m); never.")] = None,
    code: Annotated[bool, typer.Option("--code", help="Make a one-time code for tap-client enroll instead.")] = False,
    code_expires: Annotated[str | None, typer.Option(help="How long the code may be used. [default: 1h]")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Task that the device may name; repeat it for more. [default: all]")
    ] = None,
    max_examples: Annotated[
        int | None,
        typer.Option(
            help=f"Training examples of one task that it may claim. [default: {MAX_EXAMPLES}]", min=1, max=2**53
        ),
    ] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Admit a device and make its token or code, which is shown this once: only its hash is stored.

    With --renew the bounds (--task, --max-examples) stay as they were unless given anew.
    """
    require_name(device, "device")
    if token_file is not None and token_file.exists() and not renew:
        raise UsageError(f"{token_file} exists and may hold another device's token; give another --token-file")
    if code_expires is not None and not code:
        raise UsageError("--code-expires is for a code; add --code, or give a token's end with --expires")
    allowed = _known_tasks(task, load_manifest(directory).config) if task else None
    kind, secret, now = ("code", new_code(), time.time()) if code else ("token", new_token(), time.time())
    with opened_store(directory, database) as (store, _), secret_written(token_file, secret):
        store.registry.enroll(
            DeviceName(device),
            token_digest(secret),
            now,
            renew=renew,
            allowed_tasks=allowed,
            max_examples=max_examples,
            expires_at=now + seconds_of(expires, "--expires") if expires else None,
            code_expires_at=now + seconds_of(code_expires or "1h", "--code-expires") if code else None,
            actor=user_of_the_host(),
        )
        config = load_manifest(directory).config
        single = statement(config, tasks_by_device(config, store.registry.all(), now))
    if single is not None:
        typer.echo(f"note: {single}", err=True)
    show_secret({"device": device}, kind, secret, token_file, as_json)


def _known_tasks(names: list[str], config: FederationConfig) -> list[TaskName]:
    for name in names:
        if name not in config.tasks:
            hint = did_you_mean(name, config.tasks) or f"its tasks are {', '.join(sorted(config.tasks))}"
            raise UsageError(f"federation {config.name!r} has no task {name!r}; {hint}")
    return [TaskName(name) for name in names]


@app.command(epilog="Example: tap-coordinator revoke kitchen-1 federation")
@one_line_errors
def revoke(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's name.")],
    directory: Directory,
    database: Database = None,
) -> None:
    """Turn a device out: its connection ends, its token is void, its update of the open round does not count."""
    with opened_store(directory, database) as (store, _):
        store.registry.revoke(DeviceName(device), time.time(), actor=user_of_the_host())
        typer.echo(f"{device}: revoked")


@app.command(epilog="Example: tap-coordinator devices federation --json")
@one_line_errors
def devices(directory: Directory, database: Database = None, as_json: AsJson = False) -> None:
    """List the devices that were ever enrolled."""
    most = load_manifest(directory).config.rounds.max_strikes
    with opened_store(directory, database) as (store, _):
        rows = [enrolled_facts(device, time.time(), most) for device in store.registry.all()]
    if as_json:
        typer.echo(json.dumps(rows))
    for row in [] if as_json else rows:
        tasks = ", ".join(f"{name} ({count})" for name, count in row["tasks"].items()) or "-"
        until = row["code_expires_at"] or row["token_expires_at"]
        when = f"enrolled {clock(row['enrolled_at'])}" + ("" if until is None else f", until {clock(until)}")
        strikes = _strikes(row["strikes"], row["state"] == "barred")
        typer.echo(f"{row['device']:<24} {row['state']:<9} {when}  tasks: {tasks}{strikes}")


def _strikes(number: int, is_barred: bool) -> str:
    counted = f"  {number} strike{'s' if number > 1 else ''}" if number else ""
    return f"{counted}: sampled no more, see its log and enroll it with --renew" if is_barred else counted


@app.command(epilog="Example: tap-coordinator status federation --json")
@one_line_errors
def status(directory: Directory, database: Database = None, as_json: AsJson = False) -> None:
    """Show the round under way and what each device does."""
    with opened_store(directory, database) as (store, paths):
        serving = is_locked(paths.lock)
        facts = {
            "serving": serving,
            **((_live(paths) if serving else None) or recorded(load_manifest(directory), store)),
        }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"federation {facts['federation']}: {facts['phase']}{'' if serving else ' (not being served)'}")
    typer.echo(f"{facts['round']} of {facts['rounds']} rounds committed")
    if facts["sampled"]:
        sampled, reported = (", ".join(facts[key]) or "-" for key in ("sampled", "reported"))
        typer.echo(f"{_round(facts['round'], facts['attempt'])}: sampled {sampled}; reported {reported}")
    if facts["paused"] is not None:
        typer.echo(f"paused: {facts['paused']}")
    for name, device in facts["devices"].items():
        progress = f"{device['phase']} {device['step']}/{device['steps']}" if device["phase"] else ""
        state = "connected" if device["connected"] else "done" if name in facts["done"] else "away"
        strikes = _strikes(facts["strikes"].get(name, 0), name in facts["barred"])
        typer.echo(f"  {name:<24} {state:<10} {progress}{strikes}")


def _live(paths: StatePaths) -> dict[str, Any] | None:
    """What the service says of itself; None if it cannot be asked (it is just starting or ending)."""
    try:
        addresses = json.loads(paths.addresses.read_text(encoding="utf-8"))
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(addresses["http_host"], addresses["http_host"])
        where = f"http://{f'[{host}]' if ':' in host else host}:{addresses['http_port']}/status"
        request = urllib.request.Request(where, headers={"Authorization": f"Bearer {addresses['http_token']}"})
        with urllib.request.urlopen(request, timeout=5) as reply:
            live: dict[str, Any] = json.load(reply)
            return live
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None


@app.command(epilog="Example: tap-coordinator rounds federation --last 5")
@one_line_errors
def rounds(
    directory: Directory,
    last: Last = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List the attempts at rounds: who was sampled, who reported, who was missing, and why an attempt failed."""
    with opened_store(directory, database) as (store, _):
        attempts = store.attempts(last)
    if as_json:
        typer.echo(json.dumps([asdict(attempt) for attempt in attempts]))
    for attempt in [] if as_json else attempts:
        took = "" if attempt.closed_at is None else f" in {attempt.closed_at - attempt.opened_at:.1f} s"
        reason = f": {attempt.why}" if attempt.why else ""
        missing = f"; missing {', '.join(attempt.missing)}" if attempt.missing else ""
        number, sampled = _round(attempt.round, attempt.attempt), ", ".join(attempt.sampled)
        typer.echo(f"{number}: {attempt.status}{took}; sampled {sampled}{missing}{reason}")


@app.command(epilog="Example: tap-coordinator audit federation --last 20")
@one_line_errors
def audit(
    directory: Directory,
    last: Last = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List the administrative acts: when, who, what, to whom."""
    with opened_store(directory, database) as (store, _):
        acts = entries(store.engine, store.federation, last)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in acts]))
    for entry in [] if as_json else acts:
        what = " ".join(part for part in (entry.act, entry.subject) if part)
        typer.echo(f"{clock(entry.at)}  {entry.actor}: {what}" + (f" ({entry.detail})" if entry.detail else ""))


@app.command(epilog="Example: tap-coordinator pause federation --why 'new disks'")
@one_line_errors
def pause(
    directory: Directory,
    why: Annotated[str, typer.Option(help="Shown by status.")] = "by the operator",
    database: Database = None,
) -> None:
    """Let the open round close and open no other. Devices stay connected."""
    with opened_store(directory, database) as (store, _):
        store.set_paused(why, time.time(), actor=user_of_the_host())
        typer.echo("paused: the open round goes on to its close, no other opens")


@app.command(epilog="Example: tap-coordinator resume federation")
@one_line_errors
def resume(directory: Directory, database: Database = None) -> None:
    """Go on after pause, or after a round that failed too often."""
    with opened_store(directory, database) as (store, _):
        store.set_paused(None, time.time(), actor=user_of_the_host())
        typer.echo("resumed")


@app.command(epilog="Example: tap-coordinator rollback federation --to 12")
@one_line_errors
def rollback(
    directory: Directory,
    to: Annotated[int, typer.Option(help="Rounds after which the components had the values wanted; 0: those of init.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Take every component back to its value after a round, while no coordinator serves; rounds go on from there."""
    with opened_store(directory, database) as (store, paths), serving_lock(paths.lock):
        blobs = blobs_of(paths)
        actor = user_of_the_host()
        changed = roll_back(store, blobs, load_manifest(directory), to, actor=actor, at=time.time())
        number = store.history().round
    if as_json:
        typer.echo(json.dumps({"to": to, "components": changed, "next_round": number}))
    elif changed:
        is_over = number >= load_manifest(directory).config.rounds.total
        then = "no round is left to open" if is_over else f"round {number + 1} is the next to open"
        typer.echo(f"{len(changed)} components are as they were after round {to}; {then}")
    else:
        typer.echo(f"every component is already as it was after round {to}")


@app.command(epilog="Example: tap-coordinator verify federation")
@one_line_errors
def verify(
    directory: Directory,
    clean: Annotated[bool, typer.Option(help="Delete what is in quarantine.")] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Read every stored byte and compare it with its digest. Exit code 1 if something is damaged or missing."""
    with opened_store(directory, database) as (store, paths):
        blobs = blobs_of(paths)
        with working("reading what is stored"):
            report = verify_all(directory, load_manifest(directory), store, blobs)
        freed = 0
        if clean and report.quarantined:
            freed = blobs.empty_quarantine()
            store.record("clean", user_of_the_host(), f"{len(report.quarantined)} files, {freed} bytes", time.time())
    facts = {**asdict(report), "freed": freed}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        for problem in report.problems:
            typer.echo(problem)
        if report.unreferenced:
            count = len(report.unreferenced)
            typer.echo(f"{count} blobs that nothing refers to; the next start moves them to the quarantine")
        if freed:
            typer.echo(f"quarantine: {len(report.quarantined)} files deleted, {freed / 1e6:.1f} MB freed")
        elif report.quarantined:
            size = sum(report.quarantined.values())
            typer.echo(f"quarantine: {len(report.quarantined)} files, {size / 1e6:.1f} MB; --clean deletes them")
        problems = f"{len(report.problems) or 'no'} problem{'' if len(report.problems) == 1 else 's'}"
        typer.echo(f"{report.checked} checked, {report.bytes / 1e6:.1f} MB: {problems}")
    if report.problems:
        raise typer.Exit(1)


@app.command(epilog="Example: tap-coordinator stop federation")
@one_line_errors
def stop(directory: Directory, database: Database = None) -> None:
    """End the coordinator that serves DIR, and wait for it. A later serve goes on where it stopped."""
    with opened_store(directory, database) as (store, paths):
        if not is_locked(paths.lock):
            raise TapError(f"no coordinator serves {directory}")
        store.request_stop(time.time(), actor=user_of_the_host())
        limit = time.monotonic() + STOP_SECONDS
        with working("waiting for the coordinator to end"):
            while is_locked(paths.lock):
                if time.monotonic() > limit:
                    raise TapError(f"the coordinator has not ended after {STOP_SECONDS:g} s; see its log")
                time.sleep(0.1)
        typer.echo("stopped")


def _round(number: int, attempt: int) -> str:
    """As people count, from 1; JSON and logs count from 0, as the wire does."""
    return f"round {number + 1}" + (f", attempt {attempt + 1}" if attempt else "")


if __name__ == "__main__":
    app()
