"""The demo's child processes: started with a log each, watched for failure, measured, and always ended.

It knows processes, signals and log files. It does not know what the processes do.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from tap_core.errors import TapError

TERMINATE_SECONDS = 10.0
TAIL_LINES = 15


class ChildFailed(TapError):
    """A process ended with an error. ``tail`` holds its log's last lines, if they say more than that."""

    def __init__(self, message: str, tail: str):
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True)
class Child:
    """A running process and its log."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def failure(self) -> ChildFailed | None:
        """Why it failed; None while it runs or after it ended well."""
        code = self.process.poll()
        if not code:
            return None
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        reason = reasons[-1] if reasons else lines[-1] if lines else "no word in its log"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        message = f"{self.name} {how}: {reason} (log: {self.log})"
        return ChildFailed(message, "\n".join(lines[-TAIL_LINES:]) if len(lines) > 1 else "")


class Children:
    """Processes that do not outlive the block they are used in."""

    def __init__(self, logs: Path):
        self.logs = logs
        self._children: dict[str, Child] = {}
        self.peak_memory = 0

    def __enter__(self) -> "Children":
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def start(self, name: str, module: str, arguments: Sequence[str | Path]) -> Child:
        """Start ``python -m module arguments`` in the background; what it prints goes to its log."""
        log = self.logs / f"{name}.log"
        command = [sys.executable, "-m", module, *map(str, arguments)]
        with log.open("ab") as file, _signals_wait():  # between the start and the entry nobody would end it
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C comes to the demo alone, which then ends them in order
            )
            self._children[name] = Child(name, process, log)
        return self._children[name]

    def running(self) -> list[str]:
        """Names of the processes that still run. Raises ChildFailed for the first one that failed."""
        for child in self._children.values():
            failure = child.failure()
            if failure is not None:
                raise failure
        return [name for name, child in self._children.items() if child.process.poll() is None]

    def measure(self) -> int:
        """Bytes of memory of this process and all its children now; `peak_memory` keeps the largest."""
        me = psutil.Process()
        now = sum(_memory(process) for process in (me, *me.children(recursive=True)))
        self.peak_memory = max(self.peak_memory, now)
        return now

    def terminate(self) -> None:
        """End what still runs: SIGTERM, and SIGKILL for what does not heed it."""
        running = [child.process for child in self._children.values() if child.process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def child_environment() -> dict[str, str]:
    """This environment without TAP_* settings, offline, and with one thread per process."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("TAP_")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**kept, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside, so that blocks are left in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """SIGINT and SIGTERM take effect at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)


def _memory(process: psutil.Process) -> int:
    """Proportional set size where the system knows it: pages that processes share are counted once in the sum."""
    try:
        facts = process.memory_full_info()
        return int(getattr(facts, "pss", 0) or getattr(facts, "uss", 0) or facts.rss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
