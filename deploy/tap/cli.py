"""The `tap` command: make a federation, simulate it in one process, or run the demo. It parses and prints, no more."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tap_core.command_line import make_app, one_line_errors, working
from tap_core.errors import UsageError
from tap_core.names import DeviceName, TaskName

app = make_app("TAP, Two-Stage Adaptive Personalization: make federations, simulate them, run the demo.")
foundation_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at pretrained foundations.")
app.add_typer(foundation_app, name="foundation")
OUT = typer.Option("--out", help="Directory to create.")
JSON = typer.Option("--json", help="Print one JSON document instead of a table.")


@app.command(epilog="Example: tap init federation.toml --out federation")
@one_line_errors
def init(
    federation: Annotated[Path, typer.Argument(help="The federation's settings (TOML).")],
    out: Annotated[Path, OUT],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Build version 0 of every component; the directory is what tap-coordinator serves."""
    from coordinator.cohorts import statement
    from deploy.tap.federations import init_federation

    with working("building version 0 of every component"):
        manifest = init_federation(federation, out)
    size = sum(spec.size for spec in manifest.components.values())
    if as_json:
        facts = {"federation": manifest.config.name, "components": len(manifest.components), "bytes": size}
        typer.echo(json.dumps({**facts, "directory": str(out), "foundation_digest": manifest.foundation_digest}))
    else:
        typer.echo(f"{out}: {len(manifest.components)} components, {size / 1e6:.1f} MB")
        typer.echo(f"next: tap-coordinator enroll DEVICE {out}, then: tap-coordinator serve {out}")
    if single := statement(manifest.config, []):
        typer.echo(f"note: {single}", err=True)


@app.command(epilog="Example: tap simulate federation.toml --devices devices")
@one_line_errors
def simulate(
    federation: Annotated[Path, typer.Argument(help="The federation's settings (TOML).")],
    devices: Annotated[Path, typer.Option(help="Directory with NAME.toml or NAME/client.toml of each device.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Run all of TAP in this one process, with the devices' own settings and data; nothing is sent or written."""
    from deploy.demo.results_table import results_table
    from deploy.tap.federations import simulate_federation
    from tap_core.algorithms.participant import RoundOutcome

    def show(number: int, outcomes: Mapping[DeviceName, RoundOutcome]) -> None:
        for device, outcome in outcomes.items():
            report = outcome.report
            parts = [
                f"{task} {report.federated_loss[task]:.3f} | {report.personal_loss[task]:.3f}"
                + (" replaced" if report.replaced.get(task) else "")
                for task in report.federated_loss
            ]
            typer.echo(f"round {number + 1}  {device}: loss federated | personal: {', '.join(parts)}", err=True)

    _, result = simulate_federation(federation, devices, show)
    tasks = {device: outcome.results for device, outcome in result.devices.items()}
    if as_json:
        facts = {
            device: {"tasks": {name: dataclasses.asdict(task) for name, task in results.items()}}
            for device, results in tasks.items()
        }
        typer.echo(json.dumps({"devices": facts}))
    else:
        Console().print(results_table(tasks))


@app.command(epilog="Example: tap demo --out demo-out")
@one_line_errors
def demo(out: Annotated[Path, OUT] = Path("demo-out")) -> None:
    """Five devices on this machine train together over real sockets, personalize, distil and export."""
    from deploy.demo.run import run_demo

    run_demo(out)


@foundation_app.command(epilog="Example: tap foundation info facebook/flava-full --federation federation.toml")
@one_line_errors
def info(
    source: Annotated[str, typer.Argument(metavar="PATH_OR_ID", help="Directory or hub id of the foundation.")],
    federation: Annotated[
        Path | None, typer.Option(help="Settings and tasks of this federation (TOML); else defaults and four tasks.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="The device's tasks, with commas between; all of them if left out.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Facts about a foundation, what is trained on it, and an estimate of a device's memory and time for a step."""
    from deploy.tap.federations import load_federation
    from deploy.tap.foundation_info import as_lines, example_federation, foundation_info

    with working("counting"):
        config = example_federation(source)
        if federation is not None:
            config = load_federation(federation).model_copy(update={"foundation": source})
        names = list(config.tasks)
        if tasks is not None:
            names = [TaskName(name.strip()) for name in tasks.split(",") if name.strip()]
        if not names:
            raise UsageError("--tasks names no task; give names with commas between, or leave it out for all of them")
        if federation is None and (unknown := set(names) - set(config.tasks)):
            raise UsageError(
                f"--tasks: {min(unknown)!r} is none of the four tasks that serve without a federation, which are "
                f"{', '.join(sorted(config.tasks))}; for a federation's own give --federation"
            )
        found = foundation_info(config, config.tasks_named(names))
    typer.echo(json.dumps(found) if as_json else "\n".join(as_lines(found)))


if __name__ == "__main__":
    app()
