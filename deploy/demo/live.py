"""What the devices are doing, while they do it: read from their state directories, shown as a table or as lines.

It knows `progress.json` and `rounds.jsonl`, and rich. It does not know processes or the coordinator.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.demo.wording import format_bytes, format_duration, words
from edge_client.journal import PROGRESS, read_json, read_rounds
from tap_core.errors import UsageError

WIDE = 95
"""Columns of a terminal from which on the table has bars."""

NOTHING_YET: Mapping[str, Any] = {"phase": "starting", "round": -1, "rounds": 0, "step": 0, "steps": 0}
PHASES = {
    "federated": "federated set",
    "personal": "personal set",
    "teacher": "teacher",
    "student": "distilling",
}


class DeviceView:
    """What one device's state directory says now."""

    def __init__(self, name: str, state_dir: Path):
        self.name = name
        try:
            self.progress: Mapping[str, Any] = read_json(state_dir / PROGRESS) or NOTHING_YET
        except UsageError:
            self.progress = NOTHING_YET  # the device is just replacing it
        self.rounds = read_rounds(state_dir)

    @property
    def phase(self) -> str:
        return PHASES.get(self.progress["phase"], words(self.progress["phase"]))

    @property
    def round(self) -> int:
        """The round in work or last completed, counted from 1; 0 before the first."""
        return int(self.progress["round"]) + 1

    @property
    def lost(self) -> bool:
        """Whether it waits for the coordinator to answer."""
        return bool(self.progress["phase"] == "waiting")

    @property
    def bytes(self) -> int:
        return int(self.progress.get("bytes_sent", 0)) + int(self.progress.get("bytes_received", 0))


class Display:
    """Shows the devices: a table that redraws itself on a terminal, else a line for whatever is new."""

    def __init__(self, console: Console, state_dirs: Mapping[str, Path]):
        self._console, self._state_dirs = console, state_dirs
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: dict[str, tuple[int, str]] = {}

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, elapsed: float, memory: int) -> list[DeviceView]:
        """Read, show and return the present state. ``elapsed`` in seconds, ``memory`` of all processes in bytes."""
        views = [DeviceView(name, directory) for name, directory in self._state_dirs.items()]
        if self._live is not None:
            table = live_table(views, elapsed, memory, bars=self._console.width >= WIDE)
            self._live.update(table, refresh=True)
        else:
            for view in views:
                self._tell(view, elapsed)
        return views

    def _tell(self, view: DeviceView, elapsed: float) -> None:
        known, phase = self._told.get(view.name, (0, ""))
        for report in view.rounds[known:]:
            of = view.progress["rounds"]
            self._line(elapsed, view.name, f"round {report['round'] + 1}/{of}: loss {losses(report)}", view.bytes)
        if view.phase != phase and view.progress["phase"] in ("teacher", "export", "done"):
            self._line(elapsed, view.name, view.phase, view.bytes)
        self._told[view.name] = (len(view.rounds), view.phase)

    def _line(self, elapsed: float, device: str, what: str, moved: int) -> None:
        self._console.print(
            f"{elapsed:6.1f} s  {device:<22} {what}  ({format_bytes(moved)})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def losses(report: Mapping[str, Any]) -> str:
    """The losses of a round by task, federated | personal, and which task replaced its components."""
    return ", ".join(
        f"{words(task)} {federated:.3f} | {report['personal_loss'][task]:.3f}"
        + (" replaced" if report["replaced"].get(task) else "")
        for task, federated in report["federated_loss"].items()
    )


def live_table(views: list[DeviceView], elapsed: float, memory: int, *, bars: bool = True) -> Table:
    """A row per device: what it does, how far, the losses of its last round, replacements and bytes.

    80 columns wide, and 92 with ``bars``. The losses are those of the federated and of the personal set.
    """
    current = max((view.round for view in views), default=0)
    total = max((int(view.progress["rounds"]) for view in views), default=0)
    title = f"round {current} of {total or '?'}   {format_duration(elapsed)}   {format_bytes(memory)} of memory"
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=None,
        header_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for header in ("device", *(("",) if bars else ()), "task", "fed. | own loss", "replaced"):
        table.add_column(header, no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for view in views:
        step, steps = int(view.progress["step"]), int(view.progress["steps"])
        doing = f"{view.phase} {step}/{steps}" if steps else view.phase
        bar = ProgressBar(total=steps, completed=step, width=11) if steps else ""
        last = view.rounds[-1] if view.rounds else {"federated_loss": {}, "personal_loss": {}}
        tasks = list(last["federated_loss"])
        shown = [f"{last['federated_loss'][task]:.3f} | {last['personal_loss'][task]:.3f}" for task in tasks]
        fired = [sum(bool(report["replaced"].get(task)) for report in view.rounds) for task in tasks]
        table.add_row(
            Text.assemble((view.name, "bold"), "\n", (doing, "dim")),
            *((bar,) if bars else ()),
            "\n".join(map(words, tasks)),
            "\n".join(shown),
            "\n".join(f"{count} of {len(view.rounds)}" for count in fired),
            format_bytes(view.bytes),
        )
    return table
