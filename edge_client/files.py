"""The lock of a device's private directory: one process at a time. It knows one file and not what it protects."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tap_core.errors import TapError, UsageError
from tap_core.files import make_private_directory


@contextlib.contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Hold the lock of a private directory; the system lets go of it if the process dies.

    Raises TapError if another process holds it, or if the directory cannot be written.
    """
    try:
        make_private_directory(path)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a state_dir that this user can write") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TapError(
            f"another process uses {path}; stop it first, or give this device a state_dir of its own"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)
