"""The lock of a federation directory: one process serves it at a time. It knows one file, and not what serving is."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tap_core.errors import TapError

PATIENCE = 1.0
"""Seconds for which a coordinator that starts tries to get the lock: a look by `is_locked` takes it for a moment."""


@contextlib.contextmanager
def serving_lock(path: Path) -> Iterator[None]:
    """Hold the directory's lock: two coordinators would both sample. The kernel frees it however the process ends.

    Raises TapError if another process keeps it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    limit = time.monotonic() + PATIENCE
    try:
        while not _taken(descriptor):
            if time.monotonic() > limit:
                raise TapError(f"another coordinator serves {path.parent.parent}; stop it first")
            time.sleep(PATIENCE / 50)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
