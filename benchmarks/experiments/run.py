"""Runs one condition of the experiments for one seed: every algorithm along one federated trajectory, to a file.

    python benchmarks/experiments/run.py --condition limited-0.5 --seed 1 --algorithm tap --algorithm fedavg_finetune

A file holds JSON lines: for each algorithm, device and task the error on the device's test split at the end, with what
the algorithm cost the device. What a file holds is not computed again, unless what the plan says of it has changed. It
knows conditions and algorithms by name (`plan`); it does not know how results are compared (`report`).
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process a core is faster, and threads change bits
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.devices import devices
from experiments.plan import ALGORITHMS, CONDITIONS, Condition, configured, digest
from tap_core.algorithms.base import DeviceState, Final, on_wire
from tap_core.algorithms.device import Local
from tap_core.algorithms.participant import FederatedPart, FinishOutcome, Participant, RoundOutcome
from tap_core.files import new_file
from tap_core.foundations import load_foundation
from tap_core.model.tap_model import build_model
from tap_core.simulation.in_process import simulate_all
from tap_core.training.progress import OnProgress

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Spent:
    """What a device spent on an algorithm beside the federated training: optimizer steps and CPU seconds, the deciding
    among them and the measuring not."""

    steps: int = 0
    seconds: float = 0.0


class Counting(Participant):
    """A participant that keeps account of itself."""

    spent: dict[tuple[str, str], Spent]

    def personalize(
        self, part: FederatedPart, state: DeviceState, on_progress: OnProgress | None = None
    ) -> RoundOutcome:
        before = time.process_time()
        outcome = super().personalize(part, state, self._count)
        self._mine.seconds += time.process_time() - before
        return outcome

    def _finished(self, local: Local, state: DeviceState) -> Final:
        before = time.process_time()
        end = super()._finished(replace(local, on_progress=self._count), state)
        self._mine.seconds += time.process_time() - before
        return end

    @property
    def _mine(self) -> Spent:
        return self.spent[self.device, self.config.algorithm.model_dump_json()]

    def _count(self, phase: str, step: int, steps: int) -> None:
        self._mine.steps += 1


def run(
    condition: Condition, seed: int, algorithms: Mapping[str, Mapping[str, Any]], show: bool = False
) -> list[dict[str, Any]]:
    """The lines of these algorithms."""
    configs = {name: configured(condition, seed, settings) for name, settings in algorithms.items()}
    first = next(iter(configs.values()))
    spent: dict[tuple[str, str], Spent] = defaultdict(Spent)
    foundation = load_foundation(first.foundation)
    participants = {
        device: Counting(first, device, build_model(first, first.tasks_named(tasks), foundation), tasks)
        for device, tasks in devices(first, condition.split, condition.patterns).items()
    }
    for participant in participants.values():
        participant.spent = spent
    whole = build_model(first, first.tasks_named({t for p in participants.values() for t in p.data}), foundation)
    components = on_wire(whole.state("federated"), first.wire.dtype)
    began = time.monotonic()
    took = dict.fromkeys(configs, 0)

    def on_round(number: int, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        for name, of in outcomes.items():
            took[name] += sum(len(outcome.report.replaced_components) for outcome in of.values())
        if show:
            print(f"round {number + 1} of {first.rounds.total}: {time.monotonic() - began:.0f} s", file=sys.stderr)

    results = simulate_all(configs, participants, components, on_round=on_round)
    return [
        {
            "algorithm": name,
            "device": device,
            "task": task,
            "replaced": took[name],
            **asdict(spent[device, configs[name].algorithm.model_dump_json()]),
            **line,
        }
        for name, result in results.items()
        for device, outcome in result.devices.items()
        for task, line in lines(outcome)
    ]


def lines(outcome: FinishOutcome) -> list[tuple[str, dict[str, Any]]]:
    """By task, the errors of the sets (lower is better) and what was selected."""
    return [
        (
            task,
            {
                "kind": result.kind,
                "metric": result.metric,
                **{
                    key: 1 - getattr(result, key) if result.higher_is_better else getattr(result, key)
                    for key in ("floor", "federated", "stage1", "personal")
                },
                "selected": result.selected,
            },
        )
        for task, result in sorted(outcome.results.items())
    ]


def known(path: Path) -> list[dict[str, Any]]:
    """The lines that a file holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", required=True, choices=CONDITIONS)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--algorithm", action="append", choices=ALGORITHMS, help="may be given again; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    path = options.out / f"{options.condition}-{options.seed}.jsonl"
    condition, held = CONDITIONS[options.condition], known(path)
    settings = {name: digest(condition, options.seed, ALGORITHMS[name]) for name in options.algorithm or ALGORITHMS}
    done = {line["algorithm"] for line in held if line["settings"] == settings.get(line["algorithm"])}
    wanted = {name: ALGORITHMS[name] for name in settings if name not in done}
    if not wanted:
        return
    found = [
        {"settings": settings[line["algorithm"]], **line} for line in run(condition, options.seed, wanted, show=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [line for line in held if line["algorithm"] not in wanted] + found
    with new_file(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in rows).encode())


if __name__ == "__main__":
    main()
