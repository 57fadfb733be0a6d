"""What a device tells its user, as files in the state directory: live progress, a line per round, the results.

It knows file names and JSON; it does not know how the facts come about. Nothing here is needed to go on after a crash
except the byte totals, which may then lack the last moments. Readers (`status`, the demo) need no torch.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.connection import Traffic
from tap_core.errors import UsageError
from tap_core.files import append_private, make_private_directory, replace_private
from tap_core.names import ComponentName, DeviceName, TaskName
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import validate

PROGRESS, ROUNDS, RESULTS, SETTINGS = "progress.json", "rounds.jsonl", "results.json", "settings.json"
EXPORTS = "export"


@dataclass(frozen=True)
class Progress:
    """What the device is doing, for those who watch. ``round`` is the one in work or the last one, -1 before any."""

    phase: str = "starting"
    round: int = -1
    step: int = 0
    steps: int = 0


class Journal:
    """Writer of one device's files. Safe to use from the worker thread and the network loop for different files."""

    def __init__(self, state_dir: Path, device: DeviceName, *, clock: Callable[[], float] = time.time):
        make_private_directory(state_dir)
        self._directory, self._device, self._clock = state_dir, device, clock
        try:
            before = read_json(state_dir / PROGRESS) or {}
        except UsageError:
            before = {}  # written without fsync many times a minute: a power cut may empty it, and that is no error
        self.traffic = Traffic(_count(before, "bytes_sent"), _count(before, "bytes_received"))
        self._last: tuple[Any, ...] | None = None

    def progress(self, progress: Progress, rounds: int) -> None:
        """Replace `progress.json` if anything has changed. ``rounds``: how many there are, 0 if not known yet."""
        now = (progress, rounds, self.traffic.sent, self.traffic.received)
        if now == self._last:
            return
        self._last = now
        facts = {
            "device": self._device,
            "phase": progress.phase,
            "round": progress.round,
            "rounds": rounds,
            "step": progress.step,
            "steps": progress.steps,
            "bytes_sent": self.traffic.sent,
            "bytes_received": self.traffic.received,
            "updated_at": self._clock(),
        }
        replace_private(self._directory / PROGRESS, json.dumps(facts).encode() + b"\n", durable=False)

    def add_round(self, report: Mapping[str, Any]) -> None:
        append_private(self._directory / ROUNDS, json.dumps(report))

    def forget_rounds_after(self, round_number: int) -> None:
        """Drop reports of rounds whose state was never committed: they will be trained again."""
        path = self._directory / ROUNDS
        if path.exists():
            kept = [report for report in read_rounds(self._directory) if report["round"] <= round_number]
            replace_private(path, "".join(json.dumps(report) + "\n" for report in kept).encode())

    def write_results(
        self, components: Sequence[ComponentName], tasks: Mapping[TaskName, Any], samples: Mapping[TaskName, Any]
    ) -> None:
        replacements = [
            {"round": report["round"], "task": task, "replaced": replaced}
            for report in read_rounds(self._directory)
            for task, replaced in sorted(report["replaced"].items())
        ]
        facts = {
            "device": self._device,
            "components": list(components),
            "bytes_sent": self.traffic.sent,
            "bytes_received": self.traffic.received,
            "replacements": replacements,
            "tasks": tasks,
            "samples": samples,
        }
        replace_private(self._directory / RESULTS, json.dumps(facts, indent=1).encode() + b"\n")

    def write_settings(self, federation: FederationConfig) -> None:
        replace_private(self._directory / SETTINGS, federation.model_dump_json(indent=1).encode() + b"\n")


def read_settings(state_dir: Path) -> FederationConfig | None:
    """The federation's settings as the coordinator last sent them, None before the first contact."""
    values = read_json(state_dir / SETTINGS)
    return None if values is None else validate(values, FederationConfig, source=str(state_dir / SETTINGS))


def read_rounds(state_dir: Path) -> list[dict[str, Any]]:
    """The reports in `rounds.jsonl`; a last line cut off by a power cut is left out."""
    try:
        lines = (state_dir / ROUNDS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    reports = []
    for line in lines:
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return reports


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, None if there is no such file. Raises UsageError if it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is damaged; remove it and run the command again")
    return values


def _count(facts: Mapping[str, Any], key: str) -> int:
    value = facts.get(key, 0)
    return value if isinstance(value, int) else 0
