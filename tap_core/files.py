"""Putting files in place whole: a reader, and a power cut, meet the old content or the new, never a mixture.

It knows directories, modes and fsync. It does not know what the bytes mean. No torch.

``*_private`` are for what one process keeps for itself (mode 0600, on the disk when they return unless told otherwise);
`new_file` and `new_directory` are for what a user named, who also says when it is done.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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


def replace_private(path: Path, data: bytes, *, durable: bool = True, ending: str = ".new") -> None:
    """Put ``data`` in place of ``path`` in one step: written beside it, then renamed.

    What a power cut leaves half-written has the name of ``path`` with ``ending``. Raises OSError.
    """
    temporary = path.with_name(path.name + ending)
    write_private(temporary, data, durable=durable)
    put_in_place(temporary, path, durable=durable)


def put_in_place(written: Path, path: Path, *, durable: bool = True) -> None:
    """Give a file its name, in place of what has it; with ``durable`` no power cut undoes it. Raises OSError."""
    os.replace(written, path)
    if durable:
        sync_directory(path.parent)


@contextlib.contextmanager
def new_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` when the block ends; nothing is left of it if that raises.

    ``mode`` is what the umask leaves of it. Raises OSError, before the block if no file can be made beside ``path``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        put_in_place(temporary, path, durable=False)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which gets the name ``path`` when the block ends; nothing is left of it if that raises.

    By then ``path`` must be an empty directory or none. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        put_in_place(partial, path, durable=False)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
