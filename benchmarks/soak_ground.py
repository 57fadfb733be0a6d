"""A federation for `soak.py`: its directory, the coordinator's process and those of its peers.

It knows how each is started, killed and asked; it does not know when, nor what to think of it.
"""

import json
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile_peers import MEMBER_ACTS, OUTSIDER_ACTS, member_name
from round_overhead import enroll, save_federation, start_coordinator
from soak_peers import Plan

from tap_core.components import owned_components
from tap_core.manifest import FederationManifest
from tap_core.settings.federation import FederationConfig

TASKS = {
    "look": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]},
    "read": {"kind": "text_classification", "inputs": ["text"], "classes": ["a", "b"]},
}
OWNED = (("look",), ("read",), ("look", "read"))
"""The tasks of the honest devices, in turn."""

MANY_ROUNDS = 1_000_000
PATIENCE = 60.0


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    minutes: float = 20.0
    seed: int = 0
    devices: int = 5
    deadline: float = 20.0
    values: int = 20_000
    """Floats of a component; a decoder has thirty times as many."""
    bare: int = 200
    members: tuple[str, ...] = tuple(MEMBER_ACTS)
    outsiders: tuple[str, ...] = tuple(OUTSIDER_ACTS)
    lives: float = 60.0
    """Seconds, on average, after which one honest device or another is killed."""

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    @property
    def calm(self) -> float:
        """Seconds at the end without hostile peers: their last round runs to its deadline."""
        return min(self.deadline + 10, 0.3 * self.seconds)

    @property
    def honest(self) -> tuple[str, ...]:
        return tuple(f"honest-{place}" for place in range(self.devices))


class Ground:
    """A federation directory and the processes of one run on it."""

    def __init__(self, directory: Path, settings: Settings, rounds: int, hostile: tuple[str, ...]):
        self.directory, self.settings = directory, settings
        self.manifest = write_federation(directory, settings, rounds, len(hostile))
        members = {name: "" for name in hostile}
        names = {act: member_name(act, members) for act in hostile}
        self.tokens = enroll(directory, self.manifest, [*settings.honest, *names.values()])
        self.members = {}
        for act, name in names.items():
            self.members[act] = str(directory / f"{name}.token")
            Path(self.members[act]).write_text(self.tokens[name])
        self.port = free_port()
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.peers: dict[str, subprocess.Popen[bytes]] = {}
        self.lives: Counter[str] = Counter()
        self._scripts: dict[str, tuple[str, Path]] = {}

    def serve(self, *options: str) -> None:
        self.coordinator, _ = start_coordinator(self.directory, self.port, *options)

    def start(self, name: str, script: str | None = None, plan: Path | None = None) -> None:
        """Start a peer, or its next life."""
        if script is not None and plan is not None:
            self._scripts[name] = script, plan
        file, given = self._scripts[name]
        command = [sys.executable, str(Path(__file__).with_name(file)), str(given), str(self.lives[name])]
        self.lives[name] += 1
        with open(self.directory / f"{name}.log", "ab") as log:
            self.peers[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def start_honest(self, *, disturbed: bool) -> None:
        for place, name in enumerate(self.settings.honest):
            plan = plan_of(self, name, place, disturbed=disturbed)
            self.start(name, "soak_peers.py", plan.save())

    def kill(self, name: str) -> None:
        self.peers[name].kill()
        self.peers[name].wait()

    def close(self) -> None:
        """Leave no process behind."""
        running = [*self.peers.values(), *([self.coordinator] if self.coordinator else [])]
        for process in running:
            process.kill()
            process.wait()

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `tap-coordinator`."""
        command = [sys.executable, "-m", "coordinator.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)

    def facts(self, command: str) -> Any:
        done = self.command(command, str(self.directory), "--json")
        if done.returncode:
            raise SystemExit(f"tap-coordinator {command}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def diary(self) -> "Counter[tuple[str, str]]":
        """How often what happened to the honest devices: (what, why or code)."""
        events: Counter[tuple[str, str]] = Counter()
        for name in self.settings.honest:
            path = self.directory / "peers" / name / "diary.jsonl"
            for line in path.read_text().splitlines() if path.exists() else []:
                if line.endswith("}"):  # the last one may be cut by a kill
                    event = json.loads(line)
                    events[event["what"], event.get("why" if event["what"] == "disconnected" else "code", "")] += 1
        return events

    def outcomes(self) -> "Counter[str]":
        """How often each hostile act came to each end."""
        total: Counter[str] = Counter()
        for path in (self.directory / "peers" / "hostile").glob("outcomes-*.json"):
            total.update(json.loads(path.read_text()))
        return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_federation(directory: Path, settings: Settings, rounds: int, hostile: int) -> FederationManifest:
    config = FederationConfig.model_validate(
        {
            "name": "soak",
            "foundation": "none",
            "tasks": TASKS,
            "rounds": {
                "total": rounds,
                "deadline": settings.deadline,
                "min_cohort": 1,
                "clients_per_round": settings.devices + hostile,
                "min_devices": settings.devices,
                "min_updates": settings.devices,
            },
        }
    )
    sizes = {}
    for name in owned_components(config.tasks.values()):
        values = settings.values * (30 if name.startswith("decoder/") else 1)
        sizes[name] = [values - values // 4, values // 4]
    return save_federation(directory, config, sizes)


def plan_of(ground: Ground, name: str, place: int, *, disturbed: bool) -> Plan:
    """What device number ``place`` is like. The first sends slowly, the second reads slowly."""
    settings = ground.settings
    calm = {
        "name": name,
        "directory": str(ground.directory),
        "folder": str(ground.directory / "peers" / name),
        "url": f"ws://127.0.0.1:{ground.port}",
        "token": ground.tokens[name],
        "tasks": {task: 10 * (place + 1) for task in OWNED[place % len(OWNED)]},
        "seed": settings.seed,
        "address": f"127.0.1.{place + 1}",
    }
    if not disturbed:
        return Plan(**calm)
    pause = settings.deadline / 1000  # a transfer of the default size then takes an eighth of the deadline
    slow = {0: {"pause": pause, "chunk": 1 << 15}, 1: {"pause": pause}}.get(place, {})
    thinking, respite = min(1.0, settings.deadline / 20), settings.deadline
    return Plan(**calm, **slow, thinking=thinking, cut_messages=120, cut_seconds=30.0, respite=respite)


def run_undisturbed(directory: Path, settings: Settings, rounds: int) -> Ground:
    """The same federation in peace, for as many rounds. Raises SystemExit if it does not end."""
    ground = Ground(directory, settings, rounds, ())
    try:
        ground.serve("--exit-when-done")
        ground.start_honest(disturbed=False)
        assert ground.coordinator is not None
        if ground.coordinator.wait(PATIENCE + 3 * rounds) != 0:
            raise SystemExit(f"the undisturbed run failed; its log:\n{(directory / 'serve.log').read_text()[-2000:]}")
    except subprocess.TimeoutExpired:
        raise SystemExit(f"the undisturbed run of {rounds} rounds did not end") from None
    finally:
        ground.close()
    return ground
