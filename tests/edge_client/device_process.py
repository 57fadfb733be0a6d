"""A device with a light trainer, for tests: `python device_process.py CLIENT_TOML [DEATH]`.

The trainer "trains" by a fixed rule on bytes, so a test can say what every update must be. DEATH names a moment at
which the process kills itself with SIGKILL: see `die_at`.
"""

import asyncio
import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from edge_client.agent import Agent
from edge_client.config import load_client_config
from edge_client.outages import Backoff
from edge_client.private_store import PendingUpdate, PersonalTensors, PrivateStore, StoredState
from tap_core.cohorts import own_values

FOUNDATION = "f" * 64
STEPS = 5


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def trained(data: bytes, round_number: int, personal: float) -> bytes:
    """The rule: depends on what was received, the round, and all that the device has lived through."""
    return hashlib.sha256(data + f"{round_number} {personal}".encode()).digest() * (len(data) // 32)


class LightTrainer:
    """Implements what `edge_client.worker.Trainer` asks for; `calls` is what it was made to do."""

    components = ("decoder/topic", "encoder/text")

    def __init__(self):
        self.examples = {"topic": 12}
        self.calls: list = []
        self.exports: list = []
        self.gate: threading.Event | None = None
        """If set, training waits for it at every step."""

    def take_part(self, round_number, received, stored, on_progress, *, home):
        self.calls.append(round_number)
        self._steps(on_progress)
        before = 0.0 if stored is None else float(stored.personal.for_training()["decoder/topic"]["w"][0])
        own = self._own(received, stored, home)
        results = {name: trained(data, round_number, before) for name, data in {**received, **own}.items()}
        blobs = {name: data for name, data in results.items() if name not in home}
        stays = PersonalTensors({name: {"bytes": np.frombuffer(results[name], np.uint8)} for name in home})
        personal = PersonalTensors({"decoder/topic": {"w": np.array([before * 3 + round_number + 1], np.float32)}})
        pending = PendingUpdate(
            round_number,
            trained_from={name: digest(data) for name, data in received.items()},
            examples=dict.fromkeys(blobs, 12),
            digests={name: digest(data) for name, data in blobs.items()},
            blobs={digest(data): data for data in blobs.values()},
        )
        loss = {"topic": 1 / (round_number + 1)}
        report = {"round": round_number, "federated_loss": loss, "personal_loss": loss, "replaced": {"topic": True}}
        return StoredState(round_number, False, personal, loss, loss, pending, stays), report

    def finish(self, received, stored, on_progress, *, home, distilling=True):
        self.calls.append("finish")
        self._own(received, stored, home)
        self._steps(on_progress)
        return stored, {"topic": {"personal": float(len(received) + len(home))}}, {"topic": []}

    def _own(self, received, stored, home):
        """The device's own values that count; together with what is received they are its components, each once."""
        kept = {} if stored is None else stored.home.for_training()
        names = own_values(home, kept, -1 if stored is None else stored.round)
        assert sorted([*received, *names]) == sorted(self.components)
        return {name: kept[name]["bytes"].tobytes() for name in names}

    def export(self, stored, task, directory):
        self.exports.append(task)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "task.json").write_text("{}")
        return 0.0

    def _steps(self, on_progress):
        for step in range(1, STEPS + 1):
            on_progress("federated", step, STEPS)
            if self.gate is not None:
                self.gate.wait(10)


def make_agent(path: Path, trainer: LightTrainer, **settings) -> Agent:
    backoff = Backoff(first=0.02, most=0.1)
    build = lambda federation: trainer  # noqa: E731
    return Agent(
        load_client_config(path, {}), build=build, foundation_digest=lambda: FOUNDATION, backoff=backoff, **settings
    )


def die_at(death: str, trainer: LightTrainer) -> None:
    """Arrange for SIGKILL: "training N" and "finishing" in the middle of the work, "export" after it, "before commit"
    and "after commit" of the second commit.
    """

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)

    def steps(on_progress):
        on_progress("federated", 1, STEPS)
        if death in (f"training {trainer.calls[-1]}", "finishing" if trainer.calls[-1] == "finish" else ""):
            die()

    trainer._steps = steps
    if death == "export":
        trainer.export = lambda stored, task, directory: die()
    if death in ("before commit", "after commit"):
        commit, count = PrivateStore.commit, [0]

        def deadly(self, state):
            count[0] += 1
            if count[0] == 2 and death == "before commit":
                die()
            commit(self, state)
            if count[0] == 2:
                die()

        PrivateStore.commit = deadly


if __name__ == "__main__":
    light = LightTrainer()
    if len(sys.argv) > 2:
        die_at(sys.argv[2], light)
    asyncio.run(make_agent(Path(sys.argv[1]), light).run())
