"""Run a command in a process that kills itself with SIGKILL at a named point: python dying.py POINT MODULE ARGUMENTS...

The points lie between two writes that must not be torn apart, or amid training. A killed process has no chance to tidy
up, as after a power cut; that it kills itself makes the moment exact, however fast the machine is.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: Any, name: str, *, before: Callable[..., bool] | None = None, after: Callable[..., bool] | None = None):
    """Die before or after a method call for whose arguments (without self) the condition holds."""
    method = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None and before(*args, **kwargs):
            die()
        result = method(self, *args, **kwargs)
        if after is not None and after(*args, **kwargs):
            die()
        return result

    setattr(owner, name, wrapped)


def training(phase: str, step: int) -> None:
    """A client, in its worker thread, ``step`` steps into a phase of training (or ``step`` tasks into the export)."""
    from edge_client.worker import Worker

    wrap(Worker, "show", after=lambda **now: now.get("phase") == phase and now.get("step") == step)


def trained() -> None:
    """A client whose round is durable and not yet sent."""
    from edge_client.private_store import PrivateStore

    wrap(PrivateStore, "commit", after=lambda state: state.pending is not None)


def updated(number: int, *, recorded: bool) -> None:
    """The coordinator with the first update of a round: its blobs are durable, its row perhaps, no word was sent."""
    from coordinator.store import Store

    def hit(round_number: int, *_: Any) -> bool:
        return round_number == number

    wrap(Store, "add_update", **{"after" if recorded else "before": hit})


def aggregated(number: int, *, committed: bool) -> None:
    """The coordinator with the aggregates of a round: their blobs are durable, their rows perhaps."""
    from coordinator.store import Store

    def hit(round_number: int, *_: Any, **__: Any) -> bool:
        return round_number == number

    wrap(Store, "commit_round", **{"after" if committed else "before": hit})


POINTS: dict[str, Callable[[], None]] = {
    "client trains federated": lambda: training("federated", 3),
    "client trains personal": lambda: training("personal", 3),
    "client has trained": trained,
    "client trains student": lambda: training("student", 2),
    "client exports": lambda: training("export", 1),
    "coordinator has an update": lambda: updated(0, recorded=False),
    "coordinator has recorded an update": lambda: updated(1, recorded=True),
    "coordinator has aggregated": lambda: aggregated(1, committed=False),
    "coordinator has committed": lambda: aggregated(2, committed=True),
    "coordinator has committed round 0": lambda: aggregated(0, committed=True),
    "coordinator has committed round 1": lambda: aggregated(1, committed=True),
}

if __name__ == "__main__":
    point, module, *arguments = sys.argv[1:]
    POINTS[point]()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
