"""Writing files so that a power cut leaves the old content or the new, never a mixture; private to the user.

It knows directories, modes and fsync. It does not know what the bytes mean. No torch.
"""

import os
from pathlib import Path


def make_private_directory(path: Path) -> None:
    """Create ``path`` (and its parents) and set its mode to 0700. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a new file of mode 0600; with ``durable`` its bytes are on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def replace_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put ``data`` in place of ``path`` in one step: written beside it, then renamed. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    write_private(temporary, data, durable=durable)
    os.replace(temporary, path)
    if durable:
        sync_directory(path.parent)


def append_private(path: Path, line: str) -> None:
    """Append one line to a file of mode 0600. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(line + "\n")


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
