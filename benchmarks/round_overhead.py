"""What a round costs beside the training: seconds a round against a bare websockets echo of the same bytes.

    python benchmarks/round_overhead.py                          # the two default cases
    python benchmarks/round_overhead.py --case 4x29x29 --rounds 5 --json overhead.json

A case is DEVICES x MEGABYTES x TENSORS: so many devices, each owning components of so many megabytes in all (float32)
in so many tensors. A real coordinator runs as `tap-coordinator serve` in a process of its own, with its database and
its blobs on the disk; each device is a process with a real protocol session that downloads and verifies the components,
"trains" by changing a few bits of each, and uploads them all. The echo is a websockets server that sends back what it
gets; the same device processes send it the messages of an upload, each when the one before is back, so that the same
bytes cross the same kind of sockets in both directions, one after the other as in a round. The echo neither hashes,
checks, stores nor averages anything: the ratio says what all that costs. It is run as many times as there are rounds,
half of them before and half after the federation; medians are compared.
With --check the exit code is 1 if a ratio is more than 3.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from light_peers import run_device, run_echo_server

from coordinator.config import StatePaths
from coordinator.database import connect
from coordinator.identity import new_token, token_digest
from coordinator.store import Store
from protocol.tensors import ComponentTensors, digest_of, encode_tensors
from tap_core.components import owned_components
from tap_core.manifest import COMPONENTS_DIRECTORY, ComponentSpec, FederationManifest
from tap_core.settings.federation import FederationConfig

DEFAULT_CASES = ("2x5x400", "4x29x29")
ALLOWED = 3.0
"""Rounds may take so many times the echo."""

MEGABYTE = 1_000_000
START_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    devices: int
    megabytes: float
    tensors: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        devices, megabytes, tensors = text.split("x")
        return cls(int(devices), float(megabytes), int(tensors))


@dataclass(frozen=True)
class Result:
    """``bytes_per_round`` of all devices together; CPU seconds of one round or echo, of the server and of all devices;
    memory in megabytes."""

    case: Case
    rounds: int
    bytes_per_round: int
    round_seconds: list[float]
    echo_seconds: list[float]
    coordinator_cpu: float
    echo_cpu: float
    devices_cpu: float
    devices_echo_cpu: float
    coordinator_peak: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.round_seconds) / statistics.median(self.echo_seconds)


def measure(case: Case, rounds: int, directory: Path) -> Result:
    """Run echo, federation and echo again; the federation lives in ``directory``, which must not exist."""
    manifest = write_federation(directory, case, rounds)
    names = [f"device-{i}" for i in range(case.devices)]
    tokens = enroll(directory, manifest, names)
    spawn = multiprocessing.get_context("spawn")
    echo_pipe, theirs = spawn.Pipe()
    echo = spawn.Process(target=run_echo_server, args=(theirs,), daemon=True)
    echo.start()
    pipes, devices = [], []
    for name in names:
        mine, theirs = spawn.Pipe()
        devices.append(spawn.Process(target=run_device, args=(directory, name, tokens[name], theirs), daemon=True))
        devices[-1].start()
        pipes.append(mine)

    def order(what: str, port: int) -> tuple[float, int]:
        """Have every device do it; seconds until all have, and the bytes moved."""
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send((what, port))
        moved = sum(pipe.recv() for pipe in pipes)
        return time.perf_counter() - began, moved

    for pipe in pipes:
        pipe.recv()
    echo_port = echo_pipe.recv()
    order("echo", echo_port)  # warms both ends up
    echo_cpu, devices_echo_cpu = -cpu_seconds(echo), -sum(map(cpu_seconds, devices))
    echoes = [order("echo", echo_port)[0] for _ in range(-(-rounds // 2))]
    devices_cpu = -sum(map(cpu_seconds, devices))
    coordinator, port = start_coordinator(directory)
    try:
        coordinator_cpu = -cpu_seconds(coordinator)
        _, moved = order("federation", port)
        coordinator_cpu += cpu_seconds(coordinator)
        peak = peak_megabytes(coordinator)
    finally:
        coordinator.terminate()
        coordinator.wait()
    devices_cpu += sum(map(cpu_seconds, devices))
    echoes += [order("echo", echo_port)[0] for _ in range(rounds // 2)]
    echo_cpu += cpu_seconds(echo)
    devices_echo_cpu += sum(map(cpu_seconds, devices)) - devices_cpu
    for pipe in [*pipes, echo_pipe]:
        pipe.send(None)
    return Result(
        case=case,
        rounds=rounds,
        bytes_per_round=round(moved / (rounds + 0.5)),  # the final download is half a round
        round_seconds=round_seconds(directory, manifest),
        echo_seconds=echoes,
        coordinator_cpu=coordinator_cpu / rounds,
        echo_cpu=echo_cpu / rounds,
        devices_cpu=devices_cpu / rounds,
        devices_echo_cpu=devices_echo_cpu / rounds,
        coordinator_peak=peak,
    )


def write_federation(directory: Path, case: Case, rounds: int) -> FederationManifest:
    """What `tap init` would write, with random components of the case's size."""
    everyone = {"clients_per_round": case.devices, "min_devices": case.devices, "min_updates": case.devices}
    config = FederationConfig.model_validate(
        {
            "name": "overhead",
            "foundation": "none",
            "tasks": {"task": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]}},
            "rounds": {"total": rounds, "deadline": 600, "min_cohort": 1, **everyone},
        }
    )
    names = owned_components(config.tasks.values())
    values = max(1, round(case.megabytes * MEGABYTE / 4 / case.tensors))
    counts = [case.tensors // len(names) + (place < case.tensors % len(names)) for place in range(len(names))]
    return save_federation(
        directory, config, {name: [values] * max(1, n) for name, n in zip(names, counts, strict=True)}
    )


def save_federation(directory: Path, config: FederationConfig, sizes: dict[str, list[int]]) -> FederationManifest:
    """Write a federation whose components are made of random tensors with so many values each."""
    (directory / COMPONENTS_DIRECTORY).mkdir(parents=True)
    random = np.random.default_rng(0)
    components = {}
    for name, lengths in sizes.items():
        tensors = {f"t{i}": random.standard_normal(length, np.float32) for i, length in enumerate(lengths)}
        data = encode_tensors(ComponentTensors(name, tensors))
        digest = digest_of(data)
        (directory / COMPONENTS_DIRECTORY / f"{digest}.safetensors").write_bytes(data)
        shapes = {key: value.shape for key, value in tensors.items()}
        components[name] = ComponentSpec(digest=digest, size=len(data), shapes=shapes)
    manifest = FederationManifest(config=config, foundation_digest="0" * 64, components=components)
    manifest.save(directory)
    return manifest


def enroll(directory: Path, manifest: FederationManifest, names: list[str]) -> dict[str, str]:
    """Admit the devices; returns their tokens."""
    paths = StatePaths(directory)
    paths.root.mkdir()
    store = Store(connect(paths.database_url("")), manifest.config.name)
    tokens = {name: new_token() for name in names}
    for name, token in tokens.items():
        store.registry.enroll(name, token_digest(token), time.time())
    store.close()
    return tokens


def start_coordinator(directory: Path, port: int = 0, *options: str) -> tuple["subprocess.Popen[bytes]", int]:
    """Serve the directory; returns the process and the port of the device plane."""
    paths, limit = StatePaths(directory), time.monotonic() + START_SECONDS
    paths.addresses.unlink(missing_ok=True)  # a coordinator that was killed leaves it
    ports = ["--port", str(port), "--http-port", "0"]
    command = [sys.executable, "-m", "coordinator.cli", "serve", str(directory), *ports, *options]
    with open(directory / "serve.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    while not paths.addresses.exists():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise SystemExit(f"the coordinator did not start:\n{(directory / 'serve.log').read_text()}")
        time.sleep(0.02)
    return process, int(json.loads(paths.addresses.read_text())["port"])


def round_seconds(directory: Path, manifest: FederationManifest) -> list[float]:
    """From the opening of each round to that of the next; of the last one, to its commit."""
    store = Store(connect(StatePaths(directory).database_url("")), manifest.config.name)
    attempts = store.attempts()
    store.close()
    ends = [attempt.opened_at for attempt in attempts[1:]] + [attempts[-1].closed_at or 0.0]
    return [end - attempt.opened_at for attempt, end in zip(attempts, ends, strict=True)]


def peak_megabytes(process: "subprocess.Popen[bytes]") -> float:
    """Most resident memory that the process ever had."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return kilobytes * 1024 / MEGABYTE


def cpu_seconds(process: "subprocess.Popen[bytes] | multiprocessing.process.BaseProcess") -> float:
    """CPU time of the process so far, in user and system mode."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(result: Result) -> str:
    case, rounds, echo = result.case, sorted(result.round_seconds), sorted(result.echo_seconds)
    lines = [
        f"{case.devices} devices x {case.megabytes:g} MB x {case.tensors} tensors, {result.rounds} rounds:"
        f" {result.bytes_per_round / MEGABYTE:.1f} MB a round",
        "          median      least     CPU of the server  of the devices",
        f"  round {statistics.median(rounds):8.3f} s {rounds[0]:8.3f} s {result.coordinator_cpu:8.3f} s"
        f"        {result.devices_cpu:8.3f} s",
        f"  echo  {statistics.median(echo):8.3f} s {echo[0]:8.3f} s {result.echo_cpu:8.3f} s"
        f"        {result.devices_echo_cpu:8.3f} s",
        f"  ratio {result.ratio:8.2f}   {rounds[0] / echo[0]:8.2f}     (at most {ALLOWED:g} expected of the median)",
        f"  peak memory of the coordinator: {result.coordinator_peak:.0f} MB",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds a round without training, beside a bare echo.")
    parser.add_argument("--case", action="append", metavar="DEVICESxMBxTENSORS", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--directory", type=Path, help="where state goes [default: the temporary directory]")
    parser.add_argument("--check", action="store_true", help=f"fail if a ratio is more than {ALLOWED:g}")
    arguments = parser.parse_args()
    results = []
    for text in arguments.case or DEFAULT_CASES:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            results.append(measure(Case.parse(text), arguments.rounds, Path(scratch) / "federation"))
        print(report(results[-1]), flush=True)
    if arguments.json:
        figures = [{**asdict(result), "ratio": result.ratio, "allowed": ALLOWED} for result in results]
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if arguments.check and any(result.ratio > ALLOWED for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
