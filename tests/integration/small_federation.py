"""A small federation on disk and as processes: three devices with all four task kinds, a coordinator, real sockets."""

import contextlib
import csv
import json
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import numpy as np
from PIL import Image

from coordinator.config import StatePaths
from coordinator.database import connect
from coordinator.store import Store
from edge_client.private_store import PrivateStore
from protocol.tensors import ComponentTensors, digest_of, encode_tensors

DEVICES: Mapping[str, Sequence[str]] = {"asker": ("ask",), "painter": ("colour", "redraw"), "reader": ("letters",)}
TABLES: dict[str, Any] = {
    "rounds": {"total": 3, "clients_per_round": 2, "min_updates": 2, "min_devices": 3, "deadline": 300},
    "training": {"steps": 8},
    "algorithm": {"distillation": {"steps": 4}},
}
LIMIT = 300.0
Process = subprocess.Popen[bytes] | forked.Forked


@dataclass(frozen=True)
class Oracle:
    """A simulation: its result, and for each round the outcome of every device that took part."""

    result: Any
    rounds: Sequence[Mapping[str, Any]]


class Site:
    """The files of a federation and its devices below one directory, and the processes that run on them."""

    def __init__(
        self,
        root: Path,
        config: Any,
        examples: Callable[..., Any],
        *,
        export: Collection[str] = (),
        fresh: bool = False,
    ) -> None:
        """``export``: the devices that export their models at the end, which costs more than all the rest.

        ``fresh``: whether every process starts as a user's does, with an interpreter that imports what it needs, and
        is not forked from one that has.
        """
        self.export, self.fresh = export, fresh
        self.root, self.config = root, config
        self.federation = root / "federation.toml"
        self.directory = root / "federation"
        self.devices = root / "devices"
        self.port = free_port()
        self.processes: list[Process] = []
        self.federation.write_text(_toml(config.model_dump(mode="json")))
        for seed, (device, tasks) in enumerate(DEVICES.items()):
            home = self.devices / device
            home.mkdir(parents=True)
            tables = "".join(write_data(home, task, examples(task, seed=seed)) for task in tasks)
            (home / "client.toml").write_text(self.client_toml(device) + tables)

    def client_toml(self, device: str) -> str:
        return (
            f'coordinator = "ws://127.0.0.1:{self.port}"\nfederation = "mini"\ndevice_id = "{device}"\n'
            f'token_file = "token"\nstate_dir = "state"\nfoundation = "{self.config.foundation}"\n'
            f"export = {str(device in self.export).lower()}\n"
            '[runtime]\ndevice = "cpu"\nthreads = 1\n'
        )

    def prepare(self) -> None:
        """What the operator does once: `tap init` and a token for each device."""
        self.run("deploy.tap.cli", "init", self.federation, "--out", self.directory)
        for device in DEVICES:
            token = self.devices / device / "token"
            self.run("coordinator.cli", "enroll", device, self.directory, "--token-file", token)

    def run(self, module: str, *arguments: object) -> str:
        done = self.ended(module, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ended(self, module: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """A command that has run, whatever its exit code."""
        line = command(module, *arguments)
        if self.fresh:
            return subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
        return forked.run(line, LIMIT)

    def start(self, log: str, dies: str | None, module: str, *arguments: object) -> Process:
        """A process that writes to ``log``; ``dies`` names the point of `dying.py` at which it kills itself."""
        line = command(module, *arguments)
        if dies is not None:
            line = [sys.executable, str(Path(__file__).with_name("dying.py")), dies, module, *map(str, arguments)]
        with (self.root / f"{log}.log").open("ab") as file:
            begin = subprocess.Popen if self.fresh else forked.Forked
            process: Process = begin(line, stdout=file, stderr=file)
        self.processes.append(process)
        return process

    def serve(self, port: int, dies: str | None = None) -> Process:
        arguments = ("serve", self.directory, "--port", port, "--http-port", 0, "--exit-when-done")
        return self.start("coordinator", dies, "coordinator.cli", *arguments)

    def join(self, device: str, dies: str | None = None) -> Process:
        return self.start(device, dies, "edge_client.cli", "join", self.devices / device / "client.toml")

    def state_dir(self, device: str) -> Path:
        return self.devices / device / "state"

    def wait(self, *processes: Process) -> None:
        for process in processes:
            assert process.wait(LIMIT) == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-2000:]}" for p in sorted(self.root.glob("*.log")))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def free_port() -> int:
    """A port where nothing listens. It stays free: the kernel gives outgoing connections none below 32768."""
    while True:
        port = 16384 + secrets.randbelow(16384)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def write_data(home: Path, task: str, data: Any) -> str:
    """A task's examples in one of the formats that devices read; returns its table of client.toml."""
    for split in ("train", "test"):
        rows = getattr(data, split)
        folder = home / f"{task}_{split}"
        folder.mkdir()
        if task == "colour":
            for index, example in enumerate(rows):
                (folder / ("red", "green", "blue")[example.target]).mkdir(exist_ok=True)
                Image.fromarray(example.image).save(folder / ("red", "green", "blue")[example.target] / f"{index}.png")
        elif task == "letters":
            table = [{"words": e.text, "height": ("low", "high")[e.target]} for e in rows]
            with (home / f"{task}_{split}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["words", "height"])
                writer.writeheader()
                writer.writerows({**row, "words": f"{row['words']} {split[0]} {i}"} for i, row in enumerate(table))
        else:
            lines = []
            for index, example in enumerate(rows):
                Image.fromarray(example.image).save(folder / f"{index}.png")
                row = {"image": f"{folder.name}/{index}.png", "text": example.text, "target": example.target}
                lines.append(json.dumps({k: v for k, v in row.items() if isinstance(v, str)}))
            (home / f"{task}_{split}.jsonl").write_text("\n".join(lines) + "\n")
    suffix = {"colour": "", "letters": ".csv"}.get(task, ".jsonl")
    columns = 'columns = { text = "words", target = "height" }\n' if task == "letters" else ""
    return f'[tasks.{task}]\ntrain = "{task}_train{suffix}"\ntest = "{task}_test{suffix}"\n{columns}'


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    """Nested tables of plain values as TOML."""
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            tables.append(f"[{prefix}{key}]\n{_toml(value, f'{prefix}{key}.')}")
        elif value is not None and not (prefix.startswith("tasks.") and key == "name"):
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def digests_of(result: Any) -> dict[str, str]:
    """Digest by component of a simulation's final global components, in the wire's encoding."""
    return {name: digest_of(encode_tensors(ComponentTensors(name, t))) for name, t in result.components.items()}


def check_equal(site: Site, result: Any) -> None:
    """Compare a finished site with the oracle: global components, what each device keeps, histories and results."""
    with_digests = digests_of(result)
    status = json.loads(site.run("coordinator.cli", "status", site.directory, "--json"))
    assert status["phase"] == "finished", status
    final = final_components(site)
    assert final == {name: with_digests[name] for name in final}
    assert set(final) == set(with_digests)
    for device, outcome in result.devices.items():
        stored = PrivateStore(site.state_dir(device), device=device, federation="mini").load()
        assert stored is not None and stored.finished
        for kept, wanted in ((stored.personal, outcome.state.personal), (stored.home, outcome.state.home)):
            assert kept.components == set(wanted)
            for name, group in kept.for_training().items():
                for key, value in group.items():
                    assert np.array_equal(value, wanted[name][key]), (device, name, key)
        assert dict(stored.personal_loss) == outcome.state.personal_loss
        results = json.loads((site.state_dir(device) / "results.json").read_text())
        for task, scores in results["tasks"].items():
            assert scores["personal"] == outcome.results[task].personal


def final_components(site: Site) -> dict[str, str]:
    """Digest by component of the coordinator's newest versions, from its store."""
    store = Store(connect(StatePaths(site.directory).database_url("")), "mini")
    return {name: version.digest for name, version in store.versions().items()}
