"""The lock of a federation directory: one process serves it at a time. It knows one file, and not what serving is."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tap_core.errors import TapError


@contextlib.contextmanager
def serving_lock(path: Path) -> Iterator[None]:
    """Hold the directory's lock: two coordinators would both sample. The kernel frees it however the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TapError(f"another coordinator serves {path.parent.parent}; stop it first") from None
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock."""
    if not path.exists():
        return False
    try:
        with serving_lock(path):
            return False
    except TapError:
        return True
