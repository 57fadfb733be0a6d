"""Which beta stage 2 should have: the demo's federation with several, on items held out of the training data.

    python benchmarks/distillation_weight.py --beta 0 0.5 2 --seed 1 --json beta.json

Stage 1 runs once for each seed; stage 2 then runs from its end with each beta, the same for all kinds of task
(docs/method.md section 5; our KL is a mean per example or token, so the authors' values do not carry over). The test
split is not touched: a fifth of each task's training items is held out, another fifth for each seed. beta = 0 is
training on, without a teacher. Printed is each task's metric, and the error left, relative to the first beta, averaged
over tasks.
"""

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from deploy.demo.run import FEDERATION
from deploy.demo.shards import toml_of, write_shards
from deploy.tap.federations import find_devices, load_federation, load_participants, version_0
from tap_core.algorithms.measurement import TaskResult
from tap_core.algorithms.participant import Participant
from tap_core.settings.federation import FederationConfig
from tap_core.settings.per_kind import Betas
from tap_core.simulation.in_process import owned, simulate
from tap_core.tasks import KINDS

Scores = dict[str, TaskResult]


def write_devices(directory: Path, config: FederationConfig) -> None:
    """The demo's devices without their test splits."""
    for device, tasks in write_shards(directory).items():
        settings = {"coordinator": "ws://nowhere:1", "federation": config.name, "device_id": device}
        settings |= {"token_file": "token", "state_dir": "state", "foundation": config.foundation}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        tables = "\n".join(
            line for line in toml_of(tasks, directory / device).splitlines() if not line.startswith("test")
        )
        (directory / device / "client.toml").write_text("\n".join([*lines, "[runtime]", "threads = 1", *tables]) + "\n")


def with_beta(config: FederationConfig, beta: float) -> FederationConfig:
    weights = Betas(**dict.fromkeys(KINDS, beta))
    return with_distillation(config, beta=weights)


def with_distillation(config: FederationConfig, **changes: object) -> FederationConfig:
    settings = config.algorithm.model_copy(
        update={"distillation": config.algorithm.distillation.model_copy(update=changes)}
    )
    return config.model_copy(update={"algorithm": settings})


def measure(seed: int, betas: list[float], directory: Path) -> dict[float, Scores]:
    """By beta, the result of each task of each device."""
    config = load_federation(FEDERATION).model_copy(update={"seed": seed})
    write_devices(directory, config)
    participants = load_participants(config, find_devices(directory, FEDERATION))
    without = with_distillation(config, steps=0)
    participants = {name: participant.with_algorithm(without) for name, participant in participants.items()}
    stage1 = simulate(without, participants, version_0(config))
    found: dict[float, Scores] = {}
    for beta in betas:
        found[beta] = {}
        for device, participant in sorted(participants.items()):
            found[beta] |= finish(with_beta(config, beta), device, participant, stage1)
        print(f"seed {seed}, beta {beta:g}: " + scores(found[beta]), flush=True)
    return found


def finish(config: FederationConfig, device: str, participant: Participant, stage1) -> Scores:
    participant = participant.with_algorithm(config)
    state = replace(stage1.devices[device].state, finished=False)
    outcome = participant.finish({**owned(stage1.components, participant), **state.home}, state)
    return {f"{device}/{task}": result for task, result in outcome.results.items()}


def scores(results: Scores) -> str:
    return ", ".join(f"{name.split('/')[1]} {result.personal:.3f}" for name, result in sorted(results.items()))


def relative_error(results: Scores, base: Scores) -> dict[str, float]:
    """By kind of task, the geometric mean over tasks of the error left, against ``base``."""
    logs: dict[str, list[float]] = {}
    for name, result in results.items():
        logs.setdefault(result.kind, []).append(math.log(error(result) / error(base[name])))
    logs["all"] = [value for values in list(logs.values()) for value in values]
    return {kind: math.exp(sum(values) / len(values)) for kind, values in sorted(logs.items())}


def error(result: TaskResult) -> float:
    return 1 - result.personal if result.higher_is_better else result.personal


def main() -> None:
    parser = argparse.ArgumentParser(description="Stage 2 of the demo's federation with several values of beta.")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    by_seed = {}
    for seed in arguments.seed:
        with tempfile.TemporaryDirectory() as scratch:
            by_seed[seed] = measure(seed, arguments.beta, Path(scratch))
    figures = {
        f"{beta:g}": [relative_error(found[beta], found[arguments.beta[0]]) for found in by_seed.values()]
        for beta in arguments.beta
    }
    print(f"\nerror left, relative to beta = {arguments.beta[0]:g} (geometric mean over tasks; a figure for each seed)")
    for beta, rows in figures.items():
        print(
            f"beta {beta:>4}: "
            + "; ".join(f"{kind} {' '.join(f'{row[kind]:.3f}' for row in rows)}" for kind in rows[0])
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
