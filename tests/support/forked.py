"""Commands as processes of their own that need not import torch first: they are forked from a server that has.

An interpreter that imports torch and transformers takes eight CPU seconds before it does what a test looks at. A forked
one has its own pid, memory, sockets and exit code, and signals end it as any other; only the imports are done already.
So what a command imports, and whether it does, is not to be tested with it.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

IMPORTED = (
    "coordinator.service",
    "deploy.tap.federations",
    "edge_client.agent",
    "edge_client.trainer",
    "tap_core.algorithms.tap",
    "tap_core.export.graphs",
    "tap_core.foundations.flava",
    "torch._dynamo",  # which the first optimizer brings
)
"""What the server imports; the modules that run as `__main__` must not be among it."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(IMPORTED))


class Forked:
    """A running command, with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self, line: Sequence[str], *, stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str] | None = None
    ) -> None:
        """``line``: as for Popen: this Python, then a script or -m and a module, then arguments."""
        assert line[0] == sys.executable
        paths = [_path(stdout), _path(stderr)]
        arguments = (list(line[1:]), paths, dict(os.environ if env is None else env))
        self._process = _context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises TimeoutExpired as Popen does."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def run(
    line: Sequence[str], timeout: float, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` returns for this command, its output as text."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        code = Forked(line, stdout=out, stderr=err, env=env).wait(timeout)
        texts = [Path(file.name).read_text(encoding="utf-8") for file in (out, err)]
        return subprocess.CompletedProcess(line, code, *texts)


def _path(file: IO[bytes]) -> str:
    return os.path.abspath(file.name)


def _run(line: list[str], outputs: list[str], environment: dict[str, str]) -> None:
    """In the forked process: become the command."""
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if line[0] == "-m":
        sys.argv = line[1:]
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = line
        runpy.run_path(line[0], run_name="__main__")
