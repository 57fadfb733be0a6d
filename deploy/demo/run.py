"""`tap demo`: five devices and a coordinator as processes of their own on this machine, from nothing to the report.

It runs the real commands in the order in which an operator and five owners of devices would. It knows the directory
that it fills and what the commands are called; it does not know the method, and imports no torch.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from coordinator.config import StatePaths
from deploy.demo.live import Display
from deploy.demo.page import write_page
from deploy.demo.processes import Child, ChildFailed, Children, termination_interrupts
from deploy.demo.report import Machine, Report, build_report, read_device, write_report
from deploy.demo.results_table import results_table
from deploy.demo.shards import DATA, DeviceTask, toml_of, write_shards
from deploy.demo.wording import format_bytes, format_duration
from edge_client.config import directory_or_hub_id
from tap_core.errors import TapError, UsageError
from tap_core.names import DeviceName
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml

FEDERATION = Path(__file__).with_name("federation.toml")
MARKER = ".tap-demo"
"""Lies in a directory that an earlier demo filled, and that the next one may therefore empty."""

TIME_LIMIT = 1800.0
STALL_SECONDS = 60.0
"""How long every device may wait for the coordinator at once before the demo gives up."""

POLL_SECONDS = 0.5
MEASURE_SECONDS = 3.0

Shards = Callable[[Path], Mapping[str, Sequence[DeviceTask]]]


def run_demo(
    out: Path,
    *,
    federation: Path = FEDERATION,
    shards: Shards = write_shards,
    time_limit: float = TIME_LIMIT,
    console: Console | None = None,
) -> Report:
    """Run the whole demo and leave its report, logs, devices and exported models in ``out``.

    ``shards`` writes every device's data below a directory and returns its tasks by device. Raises TapError, after
    ending every process, if one of them fails or ``time_limit`` seconds pass; UsageError if ``out`` is taken or the
    demo's data are not there.
    """
    if shards is write_shards and not (DATA.is_dir() and (FEDERATION.parent / "foundation").is_dir()):
        raise UsageError(
            "the demo's data and foundation are in tap-edge's source repository and not in the installed package; "
            "clone the repository and run there: make demo"
        )
    console = Console() if console is None else console
    began = time.monotonic()
    config = load_toml(federation, FederationConfig)
    foundation = directory_or_hub_id(config.foundation, federation.absolute().parent)
    _prepare(out)
    with termination_interrupts(), Children(out / "logs") as children:
        try:
            devices = _set_up(out, federation, shards, children, console)
            coordinator_url = _start_coordinator(out, children)
            console.print(f"coordinator: {coordinator_url}", highlight=False)
            for name, tasks in devices.items():
                home = out / "devices" / name
                settings = _client_toml(config.name, name, coordinator_url, foundation) + toml_of(tasks, home)
                (home / "client.toml").write_text(settings, encoding="utf-8")
                children.start(name, "edge_client.cli", ["join", home / "client.toml"])
            state_dirs = {name: out / "devices" / name / "state" for name in devices}
            _watch(children, state_dirs, console, began, began + time_limit)
        except ChildFailed as error:
            if error.tail:
                console.print(error.tail, markup=False, highlight=False, soft_wrap=True)
            raise
    outcomes = {DeviceName(name): read_device(directory) for name, directory in state_dirs.items()}
    seconds = time.monotonic() - began
    report = build_report(outcomes, out=out, seconds=seconds, rounds=config.rounds.total)
    machine = Machine(f"{platform.system()} {platform.machine()}", os.cpu_count() or 1, children.peak_memory)
    write_report(out, report)
    page = write_page(out, report, outcomes, machine)
    _print_summary(console, report, machine, page)
    return report


def _prepare(out: Path) -> None:
    """An empty directory with the marker; what an earlier demo left in it is removed."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        raise UsageError(f"{out} exists and is not from an earlier demo; give another --out")
    try:
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / MARKER).touch()
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; give another --out") from None


def _set_up(
    out: Path, federation: Path, shards: Shards, children: Children, console: Console
) -> Mapping[str, Sequence[DeviceTask]]:
    """Data for the devices, version 0 of every component, a token for each device."""
    directory = out / "federation"
    with console.status("writing the devices' data and version 0 of every component"):
        made = children.start("init", "deploy.tap.cli", ["init", federation, "--out", directory])
        devices = shards(out / "devices")
        _finish(made)
        tokens = {name: out / "devices" / name / "token" for name in devices}
        enrolling = [
            children.start(f"enroll-{name}", "coordinator.cli", ["enroll", name, directory, "--token-file", token])
            for name, token in tokens.items()
        ]
        for child in enrolling:
            _finish(child)
    console.print(f"federation: {directory}, {len(devices)} devices enrolled", highlight=False)
    return devices


def _finish(child: Child) -> None:
    """Wait for a process that ends by itself. Raises ChildFailed if it fails."""
    child.process.wait()
    failure = child.failure()
    if failure is not None:
        raise failure


def _start_coordinator(out: Path, children: Children) -> str:
    """Start it on free ports and wait until it listens; returns its WebSocket address."""
    arguments: list[str | Path] = ["serve", out / "federation", "--port", "0", "--http-port", "0", "--exit-when-done"]
    children.start("coordinator", "coordinator.cli", arguments)
    addresses = StatePaths(out / "federation").addresses
    while not addresses.exists():
        if "coordinator" not in children.running():
            raise TapError(f"the coordinator ended before it listened; see {out / 'logs' / 'coordinator.log'}")
        time.sleep(0.05)
    return f"ws://127.0.0.1:{json.loads(addresses.read_text(encoding='utf-8'))['port']}"


def _client_toml(federation: str, device: str, coordinator: str, foundation: str) -> str:
    """Everything of a client.toml but its tasks. One CPU thread, so that five devices fit on two cores."""
    return (
        f"coordinator = {json.dumps(coordinator)}\n"
        f"federation = {json.dumps(federation)}\n"
        f"device_id = {json.dumps(device)}\n"
        'token_file = "token"\n'
        'state_dir = "state"\n'
        f"foundation = {json.dumps(foundation)}\n"
        '\n[runtime]\ndevice = "cpu"\nthreads = 1\n\n'
    )


def _watch(children: Children, state_dirs: Mapping[str, Path], console: Console, began: float, limit: float) -> None:
    """Show progress until every process has ended by itself. Raises ChildFailed or, after ``limit``, TapError."""
    memory, measured, heard = 0, 0.0, time.monotonic()
    with Display(console, state_dirs) as display:
        while running := children.running():
            now = time.monotonic()
            if now - measured >= MEASURE_SECONDS:
                memory, measured = children.measure(), now
            views = display.update(now - began, memory)
            if not all(view.lost for view in views):
                heard = now
            if now - heard > STALL_SECONDS:
                raise TapError(f"no device has reached the coordinator for {STALL_SECONDS:.0f} s; see {children.logs}")
            if now > limit:
                raise TapError(f"the demo took longer than {limit - began:.0f} s; still running: {', '.join(running)}")
            time.sleep(POLL_SECONDS)
        display.update(time.monotonic() - began, memory)


def _print_summary(console: Console, report: Report, machine: Machine, page: Path) -> None:
    console.print()
    console.print(results_table({name: device.tasks for name, device in report.devices.items()}))
    change = report.error_reduction()
    console.print(
        f"\npersonal against federated: {abs(change):.1%} {'less' if change >= 0 else 'more'} error on average over "
        f"{len(report.scores())} tasks\n"
        f"{report.rounds} rounds in {format_duration(report.seconds)}; at most {format_bytes(machine.peak_memory)} of "
        f"memory for all processes; {len(report.exports)} models exported",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"report: {page.absolute().as_uri()}", highlight=False, soft_wrap=True)
