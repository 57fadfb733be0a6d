"""The `tap-client` command: it parses, prints and sets exit codes, no more. Heavy modules are imported where used."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tap_core.command_line import make_app, one_line_errors, working
from tap_core.errors import UsageError
from tap_core.names import TaskName

if TYPE_CHECKING:
    from edge_client.agent import Agent
    from edge_client.config import ClientConfig
    from edge_client.journal import Progress
    from edge_client.trainer import LocalTrainer

app = make_app("A device of a federation: check it, join, see how it goes, and use the personal models.")
CONFIG = typer.Argument(help="The device's settings (client.toml).", show_default=False)
JSON = typer.Option("--json", help="Print one JSON document.")


@app.command(epilog="Example: tap-client doctor client.toml")
@one_line_errors
def doctor(config: Annotated[Path, CONFIG], as_json: Annotated[bool, JSON] = False) -> None:
    """Check settings, data, token, foundation, machine and coordinator; say what to do about what is wrong."""
    from edge_client.config import load_client_config
    from edge_client.doctor import findings

    settings = load_client_config(config)
    found = []
    for finding in findings(settings):
        found.append(finding)
        if not as_json:
            sign = "fail" if not finding.ok else "warn" if finding.warns else "ok  "
            typer.echo(f"{sign} {finding.what}: {finding.detail}")
    if as_json:
        facts = [asdict(finding) for finding in found]
        typer.echo(json.dumps({"ok": all(finding.ok for finding in found), "findings": facts}))
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)


@app.command(
    epilog="Examples: tap-client join client.toml | TAP_COORDINATOR=ws://10.0.0.5:8710 tap-client join client.toml"
)
@one_line_errors
def join(
    config: Annotated[Path, CONFIG],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Give up at once if the coordinator is away.")] = False,
    max_wait: Annotated[
        float | None, typer.Option(min=0, help="Give up after so many seconds without the coordinator.")
    ] = None,
) -> None:
    """Take part in the federation until it is over; the results and exported models are then in the state directory.

    Stop it at any time, with Ctrl-C, SIGTERM or the power switch: run it again and it goes on where it was.
    """
    from edge_client.config import load_client_config
    from edge_client.doctor import IN_THE_CLEAR, require_files, require_memory
    from edge_client.files import lock_directory

    settings = load_client_config(config)
    require_files(settings)
    if settings.sends_token_in_the_clear:
        typer.echo(f"warning: {IN_THE_CLEAR.format(address=settings.coordinator)}", err=True)
    with lock_directory(settings.state_dir), _progress_bar() as watch:
        require_memory(settings)
        agent = _agent(settings, 0.0 if no_wait else max_wait, watch)
        if not asyncio.run(_until_stopped(agent)):
            typer.echo("stopped; everything is saved, run the command again to go on", err=True)
            return
    typer.echo(f"done: results in {settings.state_dir / 'results.json'}, models in {settings.state_dir / 'export'}")


@app.command(
    epilog="Examples: tap-client enroll client.toml --code tapcode_... | tap-client enroll client.toml --code -"
)
@one_line_errors
def enroll(
    config: Annotated[Path, CONFIG],
    code: Annotated[str, typer.Option(help="The one-time code; - reads it from standard input.", show_default=False)],
) -> None:
    """Exchange the operator's one-time code for a token of this device's own, which goes into token_file.

    The token is made here and does not travel. If anything cuts this off, run it again with the same code.
    """
    from edge_client.config import load_client_config
    from edge_client.enrolment import enroll as exchange

    settings = load_client_config(config)
    with working("asking the coordinator"):
        until = exchange(settings, sys.stdin.readline() if code == "-" else code)
    typer.echo(f"{settings.device_id}: enrolled{_until(until)}, token in {settings.token_file}")


@app.command(epilog="Example: tap-client rotate client.toml")
@one_line_errors
def rotate(config: Annotated[Path, CONFIG]) -> None:
    """Replace this device's token by a new one; a join that runs goes on with it. State and history stay.

    If anything cuts this off, run it again.
    """
    from edge_client.config import load_client_config
    from edge_client.enrolment import rotate as exchange

    settings = load_client_config(config)
    with working("asking the coordinator"):
        until = exchange(settings)
    typer.echo(f"{settings.device_id}: token replaced{_until(until)}, the new one is in {settings.token_file}")


def _until(seconds: float | None) -> str:
    when = "" if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return when and f" until {when}"


@app.command(epilog="Example: tap-client status client.toml --json")
@one_line_errors
def status(config: Annotated[Path, CONFIG], as_json: Annotated[bool, JSON] = False) -> None:
    """Show what the device is doing or has achieved, from its state directory."""
    from edge_client.config import load_client_config
    from edge_client.journal import PROGRESS, RESULTS, read_json, read_rounds

    settings = load_client_config(config)
    progress = read_json(settings.state_dir / PROGRESS)
    rounds = read_rounds(settings.state_dir)
    results = read_json(settings.state_dir / RESULTS)
    if as_json:
        typer.echo(json.dumps({"progress": progress, "rounds": rounds, "results": results}))
    elif progress is None:
        typer.echo(f"{settings.device_id} has not joined yet; run: tap-client join {config}")
    else:
        _print_status(progress, rounds, results)


@app.command(epilog="Example: tap-client export client.toml --task emoji_group --out models")
@one_line_errors
def export(
    config: Annotated[Path, CONFIG],
    out: Annotated[Path | None, typer.Option(help="Directory for the models; STATE_DIR/export unless given.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task to export; all of them unless given.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write the personal model of each task as ONNX, from the last saved state (also in the middle of a federation)."""
    from edge_client.config import load_client_config
    from edge_client.journal import EXPORTS, read_settings
    from edge_client.private_store import PrivateStore

    settings = load_client_config(config)
    names = [TaskName(name) for name in task or settings.tasks]
    for name in names:
        if name not in settings.tasks:
            raise UsageError(f"{config} has no task {name!r}; its tasks are {', '.join(sorted(settings.tasks))}")
    federation = read_settings(settings.state_dir)
    store = PrivateStore(settings.state_dir, device=settings.device_id, federation=settings.federation)
    state = store.load()
    if federation is None or state is None:
        raise UsageError(f"{settings.device_id} has no personal model yet; run: tap-client join {config}")
    from edge_client.trainer import build_trainer

    trainer = build_trainer(settings, federation)
    directory = settings.state_dir / EXPORTS if out is None else out
    exports = []
    for name in sorted(names):
        with working(f"exporting {name}"):
            difference = trainer.export(state, name, directory / name)
        exports.append({"task": name, "path": str(directory / name), "max_abs_diff": difference})
        if not as_json:
            typer.echo(f"{directory / name}: onnxruntime agrees with torch within {difference:.1e}")
    if as_json:
        typer.echo(json.dumps({"exports": exports}))


@app.command(
    epilog="Examples: tap-client predict state/export/emoji_group --image cat.png | "
    'tap-client predict state/export/definition_category --text "a young cat"'
)
@one_line_errors
def predict(
    model: Annotated[Path, typer.Argument(help="Directory of an exported task.", show_default=False)],
    image: Annotated[Path | None, typer.Option(help="Image file, for tasks that take one.")] = None,
    text: Annotated[str | None, typer.Option(help="Text, for tasks that take one.")] = None,
    output: Annotated[Path | None, typer.Option(help="PNG to write, for tasks that generate an image.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beams, for tasks that generate text; 1 is greedy.")] = 1,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Run an exported model on an image, a text, or both. Needs onnxruntime, tokenizers and pillow; no torch."""
    from edge_client.inference import predict as run
    from tap_core.tasks import task_kind

    facts = run(model, image, text, output=output, beams=beams)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo(task_kind(facts["kind"]).line(facts))


def _agent(settings: "ClientConfig", max_wait: float | None, watch: "_Watch") -> "Agent":
    from edge_client.agent import Agent

    def build(federation: Any) -> "LocalTrainer":
        from edge_client.trainer import build_trainer

        return build_trainer(settings, federation)

    def digest() -> str:
        from tap_core.foundations.files import foundation_digest

        return foundation_digest(settings.foundation)

    return Agent(settings, build=build, foundation_digest=digest, say=watch.say, watch=watch.show, max_wait=max_wait)


async def _until_stopped(agent: "Agent") -> bool:
    """Run the agent; False if SIGTERM or Ctrl-C ended it. The work under way is given up, committed state is kept."""
    running = asyncio.ensure_future(agent.run())
    loop = asyncio.get_running_loop()
    stops = (signal.SIGTERM, signal.SIGINT)
    for stop in stops:
        loop.add_signal_handler(stop, running.cancel)
    try:
        await running
        return True
    except asyncio.CancelledError:
        return False
    finally:
        for stop in stops:
            loop.remove_signal_handler(stop)


class _Watch:
    """Lines for a log; `_Bar` adds a progress bar on a terminal."""

    def say(self, line: str) -> None:
        typer.echo(line, err=True)

    def show(self, progress: "Progress", rounds: int) -> None:
        """Nothing: a log needs no bar."""


class _Bar(_Watch):
    def __init__(self, progress: Any):
        self._progress = progress
        self._task = progress.add_task("starting", total=None)

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)

    def show(self, progress: "Progress", rounds: int) -> None:
        where = f"round {progress.round + 1}/{rounds} " if progress.round >= 0 else ""
        self._progress.update(
            self._task,
            description=f"{where}{progress.phase}",
            total=progress.steps or None,
            completed=progress.step,
        )


@contextlib.contextmanager
def _progress_bar() -> Any:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Watch()
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress)


def _print_status(progress: dict[str, Any], rounds: list[dict[str, Any]], results: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    def by_task(*headers: str) -> Table:
        return Table(Column("task", overflow="fold"), *headers, box=None)  # a name is wrapped, never cut

    step = f", step {progress['step']} of {progress['steps']}" if progress["steps"] else ""
    typer.echo(
        f"{progress['device']}: {progress['phase']}{step}, took part in {len(rounds)} of {progress['rounds']} rounds, "
        f"sent {progress['bytes_sent'] / 1e6:.1f} MB, received {progress['bytes_received'] / 1e6:.1f} MB"
    )
    if rounds:
        table = by_task("last round", "loss federated", "loss personal", "replaced")
        last = rounds[-1]
        for name, loss in sorted(last["federated_loss"].items()):
            times = sum(bool(report["replaced"].get(name)) for report in rounds)
            table.add_row(
                name,
                str(last["round"] + 1),
                f"{loss:.4f}",
                f"{last['personal_loss'][name]:.4f}",
                f"{times} of {len(rounds)}",
            )
        Console().print(table)
    if results is not None and not results["tasks"]:
        typer.echo("no test examples, so nothing was measured; give the tasks a 'test' or a larger 'test_fraction'")
    elif results is not None:
        table = by_task("metric", "floor", "federated", "stage 1", "personal", "test examples")
        for name, result in sorted(results["tasks"].items()):
            values = [f"{result[key]:.3f}" for key in ("floor", "federated", "stage1", "personal")]
            table.add_row(
                name, f"{result['metric']} {'↑' if result['higher_is_better'] else '↓'}", *values, str(result["n_test"])
            )
        Console().print(table)


if __name__ == "__main__":
    app()
