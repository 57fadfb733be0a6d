"""What the demo measured: read from the devices' state directories, checked, and written as report.json.

It knows the files that a device leaves (`results.json`, `rounds.jsonl`, `export/TASK/parity.json`) and the form of the
report. It does not know how the federation ran, and computes no metric itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_client.journal import EXPORTS, RESULTS, ROUNDS, read_json, read_rounds
from tap_core.errors import TapError
from tap_core.files import new_file
from tap_core.names import DeviceName, TaskName

REPORT_NAME = "report.json"


class _Facts(BaseModel):
    """Frozen, finite and exact: a key too many is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskScores(_Facts):
    """One task's metric on the device's test split: the floor, the global model, and the personal one twice."""

    kind: str
    metric: str
    higher_is_better: bool
    n_test: int = Field(ge=0)
    floor: float
    federated: float
    stage1: float
    personal: float
    floor_answer: str = ""
    selected: str = ""
    intervals: dict[str, tuple[float, float]] = {}
    metrics: dict[str, dict[str, float]] = {}

    def error(self, value: float) -> float:
        """``value`` as an error, less is better: one minus a score, or the error itself."""
        return 1 - value if self.higher_is_better else value

    @property
    def best(self) -> float | None:
        """The best of the four values; None if they are all equal."""
        values = (self.floor, self.federated, self.stage1, self.personal)
        return None if len(set(values)) == 1 else min(values, key=self.error)

    def better(self, one: float, other: float) -> bool:
        return self.error(one) < self.error(other)


class Replacement(_Facts):
    """Whether the trigger of a task fired in a round that the device took part in. Rounds count from 0."""

    round: int = Field(ge=0)
    task: TaskName
    replaced: bool


class DeviceReport(_Facts):
    """One device. Bytes are those of its connection, both over the whole run."""

    components: tuple[str, ...]
    bytes_sent: int = Field(ge=0)
    bytes_received: int = Field(ge=0)
    replacements: tuple[Replacement, ...]
    tasks: dict[TaskName, TaskScores]


class Export(_Facts):
    """An exported model. ``path`` is relative to the report; ``max_abs_diff``: onnxruntime against torch."""

    device: DeviceName
    task: TaskName
    path: str
    max_abs_diff: float = Field(ge=0)


class Report(_Facts):
    """report.json."""

    seconds: float = Field(ge=0)
    rounds: int = Field(ge=0)
    devices: dict[DeviceName, DeviceReport]
    exports: tuple[Export, ...]

    def scores(self) -> list[TaskScores]:
        """Every device's every task."""
        return [task for device in self.devices.values() for task in device.tasks.values()]

    def error_reduction(self) -> float:
        """Mean over the tasks of (federated error - personal error) / federated error; positive if personal is better.

        Errors are one minus accuracy or F1, and the mean squared error. Tasks without federated error are left out.
        """
        pairs = [(t.error(t.federated), t.error(t.personal)) for t in self.scores()]
        relative = [(federated - personal) / federated for federated, personal in pairs if federated > 0]
        return sum(relative) / len(relative) if relative else 0.0


class _Read(BaseModel):
    """Files of a device: keys that the report does not need are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RoundLine(_Read):
    """One line of `rounds.jsonl`; losses are mean training losses per example, by task."""

    round: int
    federated_loss: dict[TaskName, float]
    personal_loss: dict[TaskName, float]
    replaced: dict[TaskName, bool] = {}


class Sample(_Read):
    """One test example and what both models made of it. Images are data URIs."""

    input: dict[str, str]
    target: str
    federated: str
    personal: str


class DeviceResults(_Read):
    """`results.json`."""

    components: tuple[str, ...]
    bytes_sent: int
    bytes_received: int
    replacements: tuple[Replacement, ...]
    tasks: dict[TaskName, TaskScores]
    samples: dict[TaskName, tuple[Sample, ...]] = {}


class _Parity(_Read):
    """`export/TASK/parity.json`."""

    max_abs_diff: float


@dataclass(frozen=True)
class DeviceOutcome:
    """All that a device left behind: results, its rounds in order, and by task the largest difference of its export."""

    results: DeviceResults
    rounds: tuple[RoundLine, ...]
    exports: Mapping[TaskName, float]
    directory: Path


@dataclass(frozen=True)
class Machine:
    """What the run took of the machine that it ran on: a name, cores, and bytes of memory at the peak."""

    name: str
    cores: int
    peak_memory: int


def read_device(state_dir: Path) -> DeviceOutcome:
    """Read a finished device's state directory. Raises TapError if it did not finish or a file is damaged."""
    path = state_dir / RESULTS
    values = read_json(path)
    if values is None:
        raise TapError(f"{path} is missing: the device did not finish; see its log beside it")
    rounds = [_validated(line, RoundLine, state_dir / ROUNDS) for line in read_rounds(state_dir)]
    parities = {
        TaskName(path.parent.name): _validated(read_json(path) or {}, _Parity, path).max_abs_diff
        for path in sorted((state_dir / EXPORTS).glob("*/parity.json"))
    }
    ordered = {line.round: line for line in sorted(rounds, key=lambda line: line.round)}
    return DeviceOutcome(_validated(values, DeviceResults, path), tuple(ordered.values()), parities, state_dir)


def build_report(outcomes: Mapping[DeviceName, DeviceOutcome], *, out: Path, seconds: float, rounds: int) -> Report:
    """The report on devices' outcomes; export paths are relative to ``out``. Raises TapError for a value not finite."""
    devices = {
        name: {
            "components": outcome.results.components,
            "bytes_sent": outcome.results.bytes_sent,
            "bytes_received": outcome.results.bytes_received,
            "replacements": [replacement.model_dump() for replacement in outcome.results.replacements],
            "tasks": {task: scores.model_dump() for task, scores in outcome.results.tasks.items()},
        }
        for name, outcome in outcomes.items()
    }
    exports = [
        {
            "device": name,
            "task": task,
            "path": Path(os.path.relpath(outcome.directory / EXPORTS / task, out)).as_posix(),
            "max_abs_diff": difference,
        }
        for name, outcome in outcomes.items()
        for task, difference in outcome.exports.items()
    ]
    values = {"seconds": round(seconds, 1), "rounds": rounds, "devices": devices, "exports": exports}
    return _validated(values, Report, out)


def write_report(out: Path, report: Report) -> Path:
    """Write ``out``/report.json, whole or not at all."""
    return write_whole(out / REPORT_NAME, report.model_dump_json(indent=1) + "\n")


Model = TypeVar("Model", bound=BaseModel)


def _validated(values: Any, model: type[Model], source: Path) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise TapError(f"{source}: {where}: {problem['msg']}; run the demo again") from None


def write_whole(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())
    return path
