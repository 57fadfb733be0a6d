"""The file of the device's token, and the one beside it that holds the next token until it is known to be valid.

A power cut at any moment leaves one of the two files with a valid token. It knows files; what a token opens is the
coordinator's matter.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from tap_core.errors import UsageError
from tap_core.files import put_in_place, replace_private

PREFIX = "tap_"
"""Of a device's token, so that secret scanners and people recognise it."""

REPLACEMENT_SECONDS = 10.0
"""How long a refused device waits for a new token that is on its way into the file."""


def read_token(path: Path) -> str:
    """The token in a file. Raises UsageError, in one line, if there is none."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(
            f"token file {path}: {error.strerror}; run tap-client enroll with the operator's code, or put there the"
            " token that tap-coordinator enroll printed"
        ) from None
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"token file {path} holds no token; put there the line that tap-coordinator enroll printed")
    return token


def next_token_file(path: Path) -> Path:
    """Where the next token is kept until it takes the place of the one in ``path``."""
    return path.with_name(path.name + ".new")


def next_token(path: Path) -> str:
    """The next token: the one of an exchange that was cut off, else a fresh one, on the disk before this returns.

    Raises UsageError if the file cannot be written or holds no token.
    """
    kept = next_token_file(path)
    if kept.exists():
        return read_token(kept)
    token = PREFIX + secrets.token_urlsafe(32)
    try:
        replace_private(kept, f"{token}\n".encode())  # never half a token under the name that is looked for
    except OSError as error:
        raise UsageError(f"cannot write {kept}: {error.strerror}; give a token_file that this user can write") from None
    return token


def take_next_token(path: Path) -> None:
    """The next token is valid: it takes the place of the one in ``path``. Raises OSError."""
    put_in_place(next_token_file(path), path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[None]:
    """One process at a time replaces tokens in a directory; another one waits. Raises UsageError."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"{path.parent}: {error.strerror}; correct token_file") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def is_replaced(path: Path, token: str) -> bool:
    """Whether the file holds another token than the one that was refused, now or as soon as a replacement that is under
    way has ended. Raises UsageError if there is no token any more."""
    limit = time.monotonic() + REPLACEMENT_SECONDS
    while read_token(path) == token:
        if not next_token_file(path).exists() or time.monotonic() > limit:
            return read_token(path) != token  # it may have been put in place between the two looks
        await asyncio.sleep(0.05)
    return True


def explained(refusal: UsageError, path: Path) -> UsageError:
    """The refusal of a token; it tells of an exchange that was cut off and may only have to be ended."""
    if not next_token_file(path).exists():
        return refusal
    how = (
        "run tap-client rotate, or tap-client enroll with the same code, to end the exchange of tokens that was cut off"
    )
    return UsageError(f"{refusal}; {how}")
