"""Content-addressed bytes in a directory: one file per blob, named by its sha256.

A blob is *staged* (written in `incoming/` and fsynced) and then *sealed*: renamed into the directory, and the directory
fsynced. A sealed name means that the bytes survive a power cut; a crash at any point leaves the blob staged, sealed or
absent, never in part. Blobs that are needed together are staged as they come and sealed together, with one fsync.
It knows bytes and digests, not what they mean.
"""

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tap_core.errors import TapError

_DIGEST = re.compile(r"^[0-9a-f]{64}\Z")
_STAGED_AT_ONCE = 8


class BlobError(TapError):
    """A blob is missing or its bytes are not those of its name."""


class BlobStore:
    """Blobs in ``directory``, which is made if it is missing. Safe to use from several threads, by one process."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._incoming = directory / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._doomed: set[str] = set()
        self._lock = threading.Lock()  # of _doomed, and of every step that moves or removes a file
        self._synced: set[str] = set()  # staged, and the bytes are on the disk
        self.pool = ThreadPoolExecutor(_STAGED_AT_ONCE, thread_name_prefix="blobs")
        """For whoever stages blobs: waiting for the disk must not use up the threads of others."""

    def recover(self) -> None:
        """After a crash: keep staged blobs that are whole, remove what was half-written, make sealed names durable."""
        for left in self._incoming.iterdir():
            if hashlib.sha256(left.read_bytes()).hexdigest() != left.name:
                left.unlink()
        _fsync(self.directory)

    def close(self) -> None:
        self.pool.shutdown()

    def has(self, digest: str) -> bool:
        """Whether the blob is staged or sealed."""
        self._check(digest)
        with self._lock:
            return digest not in self._doomed and self._find(digest) is not None

    def stage(self, digest: str, data: bytes | memoryview) -> None:
        """Write and fsync ``data``, whose sha256 the caller has computed or checked: hashing twice costs a good part of
        a round. The name is not durable before `seal`."""
        self._check(digest)
        with self._lock:
            self._doomed.discard(digest)
            if self._find(digest) is not None:
                return
        part = self._incoming / f"{digest[:16]}-{secrets.token_hex(8)}.part"
        with open(part, "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        with self._lock:
            if self._sealed(digest).exists():  # another thread was quicker
                part.unlink()
                return
            os.replace(part, self._incoming / digest)
            self._synced.add(digest)

    def seal(self, digests: Iterable[str]) -> None:
        """Make these blobs durable. Raises BlobError if one is neither staged nor sealed."""
        moved = [digest for digest in sorted(set(digests)) if self._move(digest)]
        if moved:
            _fsync(self.directory)

    def _move(self, digest: str) -> bool:
        """Give a staged blob its sealed name; False if it has it already."""
        staged = self._incoming / digest
        with self._lock:
            if self._sealed(digest).exists():
                return False
            if not staged.exists():
                raise self._missing(digest)
            if digest not in self._synced:  # staged by a process that was killed
                _fsync(staged)
            os.replace(staged, self._sealed(digest))
            self._synced.discard(digest)
            return True

    def drop(self, digests: Iterable[str]) -> None:
        """Remove blobs that are staged; sealed ones stay."""
        for digest in digests:
            with self._lock:
                (self._incoming / digest).unlink(missing_ok=True)
                self._synced.discard(digest)

    def put(self, digest: str, data: bytes | memoryview) -> None:
        """Stage and seal one blob."""
        self.stage(digest, data)
        self.seal([digest])

    def get(self, digest: str, *, verify: bool = False) -> bytes:
        """The bytes of a blob. Raises BlobError if it is missing or, with ``verify``, damaged."""
        self._check(digest)
        for path in (self._sealed(digest), self._incoming / digest, self._sealed(digest)):  # it may move meanwhile
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes()
                if verify and hashlib.sha256(data).hexdigest() != digest:
                    raise BlobError(f"{path} is damaged; restore the state directory from a backup")
                return data
        raise self._missing(digest)

    def get_some(self, digests: Iterable[str], at_least: int = 2 << 20) -> list[bytes]:
        """The first blobs of ``digests``, as few as hold ``at_least`` bytes together (all, if they hold less)."""
        found: list[bytes] = []
        for digest in digests:
            found.append(self.get(digest))
            if sum(map(len, found)) >= at_least:
                break
        return found

    def digests(self) -> list[str]:
        """Every blob there is, sorted."""
        found = [entry.name for place in (self.directory, self._incoming) for entry in os.scandir(place)]
        return sorted({name for name in found if _DIGEST.match(name)})

    def doom(self, keep: Collection[str]) -> None:
        """Give up every blob that is not in ``keep``: `has` denies it at once, `collect` removes it later.

        A blob that is staged again meanwhile is saved. The caller sees to it that none of them gains a reference now.
        """
        with self._lock:
            self._doomed |= set(self.digests()) - set(keep)

    def collect(self) -> int:
        """Remove the blobs that were given up; returns the bytes freed."""
        freed = 0
        for digest in sorted(self._doomed):
            waste = self._incoming / f"{digest[:16]}-{secrets.token_hex(8)}.waste"
            with self._lock:
                path = self._find(digest) if digest in self._doomed else None
                self._doomed.discard(digest)
                if path is None:
                    continue
                os.rename(path, waste)
            freed += waste.stat().st_size  # the slow part goes without the lock
            waste.unlink()
        return freed

    def _check(self, digest: str) -> None:
        if not _DIGEST.match(digest):
            raise ValueError(f"{digest!r} is not a sha256 in hexadecimal")

    def _sealed(self, digest: str) -> Path:
        return self.directory / digest

    def _find(self, digest: str) -> Path | None:
        for path in (self._sealed(digest), self._incoming / digest):
            if path.exists():
                return path
        return None

    def _missing(self, digest: str) -> BlobError:
        return BlobError(f"blob {digest} is missing from {self.directory}; restore the state directory from a backup")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
