"""A golden record: digests of all that a small federation of every task kind trains to, one line each.

Code that moves must change no bit: run this in two checkouts on the same machine and compare.

    python benchmarks/golden.py > before.txt      (in the old checkout)
    python benchmarks/golden.py > after.txt       (in the new one)
    diff before.txt after.txt

The digests differ between types of CPU, so none is kept here. Names of tensors do not enter them; names of components,
shapes and values do.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import mini
import numpy as np

from tap_core.algorithms.base import on_wire
from tap_core.algorithms.participant import Participant
from tap_core.foundations import load_foundation
from tap_core.model.tap_model import build_model
from tap_core.settings.runtime import Runtime
from tap_core.simulation.in_process import simulate

DEVICES = {"a": ("colour", "letters"), "b": ("ask", "redraw", "shade"), "c": ("colour", "ask", "letters", "marks")}


def digest(tensors: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """One digest of a set of components: names of components, shapes and values."""
    whole = hashlib.sha256()
    for component, group in sorted(tensors.items()):
        whole.update(component.encode())
        parts = sorted(str(value.shape).encode() + np.ascontiguousarray(value).tobytes() for value in group.values())
        for part in parts:
            whole.update(part)
    return whole.hexdigest()[:32]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        foundation = mini.write_mini_foundation(Path(scratch) / "flava")
        config = mini.mini_settings(foundation)
        loaded = load_foundation(config.foundation)
        runtime = Runtime(device="cpu", threads=1)
        participants = {}
        for device, tasks in DEVICES.items():
            data = {task: mini.mini_data(task, seed=ord(device)) for task in tasks}
            model = build_model(config, config.tasks_named(tasks), loaded)
            participants[device] = Participant(config, device, model, data, runtime)
        whole = build_model(config, config.tasks_named(config.tasks), loaded)
        start = on_wire(whole.state("federated"), config.wire.dtype)
        print(f"version 0         {digest(start)}")
        result = simulate(config, participants, start)
        print(f"global components {digest(result.components)}")
        for device, outcome in sorted(result.devices.items()):
            print(f"personal set {device}    {digest(outcome.state.personal)}")
            for task, scores in sorted(outcome.results.items()):
                print(f"  {task:8} {scores.floor!r} {scores.federated!r} {scores.stage1!r} {scores.personal!r}")


if __name__ == "__main__":
    main()
