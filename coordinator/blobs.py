"""Content-addressed bytes in a directory: one file per blob, named by its sha256.

A blob is *staged* by an owner (written to `incoming/OWNER/` and fsynced) and then *sealed*: renamed into the directory,
and the directory fsynced. A sealed name means that the bytes survive a power cut; a crash at any point leaves the blob
staged, sealed or absent, never in part: what cannot be written whole is an OSError, and no name appears. What one owner
stages, drops or never finishes does not touch another's.

Bytes that were stored are not trusted. Every read from the disk is checked against the name; what does not match goes
to `quarantine/` and is a DamagedBlob, so that it can be neither averaged nor sent. Nothing is deleted but what `drop`
and `collect` are told to. Bytes that were checked or written a moment ago are kept in memory, a bounded amount of them:
a round reads most of what it needs from there.

It knows bytes and digests, not what they mean.
"""

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from protocol.names import Digest
from tap_core.errors import TapError
from tap_core.files import sync_directory
from tap_core.names import DeviceName

KEPT_IN_MEMORY = 32 * 1024 * 1024
"""Bytes of checked blobs that are kept for the next reader."""

WRITING = ".writing"
"""The ending of a file that is being written."""

ROUND = DeviceName(".round")
"""The owner of what the coordinator itself stages; no device can have this name."""

_DIGEST = re.compile(r"^[0-9a-f]{64}\Z")
_OWNER = re.compile(r"^\.?[a-z0-9][a-z0-9_-]{0,63}\Z")
_STAGED_AT_ONCE = 8
_LARGEST_WRITE = 1 << 30  # Linux writes 2 GiB at most in one call

log = structlog.get_logger("coordinator.blobs")


class BlobError(TapError):
    """The bytes of ``digest`` cannot be had."""

    def __init__(self, why: str, digest: Digest):
        super().__init__(why)
        self.digest = digest


class MissingBlob(BlobError):
    """No file has this name."""


class DamagedBlob(BlobError):
    """The file's bytes were not those of its name; it is in quarantine now."""


class BlobStore:
    """Blobs in ``directory``, which is made if it is missing. Safe to use from several threads, by one process."""

    def __init__(self, directory: Path, kept_in_memory: int = KEPT_IN_MEMORY):
        self.directory = directory
        self._incoming = directory / "incoming"
        self._quarantine = directory / "quarantine"
        for place in (self._incoming, self._quarantine):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._doomed: set[Digest] = set()
        self._lock = threading.Lock()  # of what follows, and of every step that moves or removes a sealed file
        self._known: OrderedDict[Digest, bytes] = OrderedDict()  # checked, the last used at the end
        self._known_limit, self._known_size = kept_in_memory, 0
        self.pool = ThreadPoolExecutor(_STAGED_AT_ONCE, thread_name_prefix="blobs")
        """For whoever stages blobs: waiting for the disk must not use up the threads of others."""

    def recover(self, referenced: Collection[Digest]) -> list[str]:
        """After a start: what is half-written, and every sealed blob that is not ``referenced``, goes to quarantine.

        Staged blobs that are whole stay: their device need not send them again. Returns the names in quarantine that
        came from this call.
        """
        strays = [
            path
            for path in sorted(self._incoming.rglob("*"))
            if path.is_file() and (path.parent == self._incoming or path.suffix == WRITING)
        ]
        strays += [self._sealed(digest) for digest in sorted(set(self.digests()) - set(referenced))]
        moved = [self._set_aside(path) for path in strays]
        for name in moved:
            log.warning("set aside", file=name, why="nothing refers to it; see: tap-coordinator verify")
        sync_directory(self.directory)
        return moved

    def close(self) -> None:
        self.pool.shutdown()

    # in

    def has(self, digest: Digest, owner: DeviceName | None = None) -> bool:
        """Whether the blob is sealed or, with an ``owner``, staged by it."""
        self._check(digest)
        if owner is not None and self._staged(owner, digest).exists():
            return True
        with self._lock:
            return digest not in self._doomed and self._sealed(digest).exists()

    def stage(self, owner: DeviceName, digest: Digest, data: bytes) -> None:
        """Write and fsync ``data``, whose sha256 the caller has computed or checked: hashing twice costs a good part of
        a round. The name is not durable before `seal`. Raises OSError, and leaves nothing, if not all can be written.
        """
        self._check(digest)
        with self._lock:
            self._doomed.discard(digest)
            if self._sealed(digest).exists():
                return
        staged = self._staged(owner, digest)
        if staged.exists():
            return
        staged.parent.mkdir(mode=0o700, exist_ok=True)
        writing = staged.with_name(f"{digest[:16]}-{secrets.token_hex(8)}{WRITING}")
        try:
            _write_whole(writing, data, digest)
            os.replace(writing, staged)
        except BaseException:
            with contextlib.suppress(OSError):
                writing.unlink(missing_ok=True)
            raise
        self._remember(digest, data)

    def seal(self, owner: DeviceName, digests: Iterable[Digest]) -> None:
        """Make these blobs durable. Raises MissingBlob if one is neither staged by ``owner`` nor sealed."""
        moved = [digest for digest in sorted(set(digests)) if self._move(owner, digest)]
        if moved:
            sync_directory(self.directory)

    def _move(self, owner: DeviceName, digest: Digest) -> bool:
        """Give a staged blob its sealed name; False if it has it already."""
        staged = self._staged(owner, digest)
        with self._lock:
            self._doomed.discard(digest)
            if self._sealed(digest).exists():
                staged.unlink(missing_ok=True)
                return False
            try:
                os.replace(staged, self._sealed(digest))
            except FileNotFoundError:
                raise self._missing(digest) from None
            return True

    def drop(self, owner: DeviceName, *, keep: Collection[Digest] = ()) -> None:
        """Remove what the owner has staged, but for the blobs of ``keep``. Sealed blobs stay."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.place_of(owner).iterdir():
                if path.suffix != WRITING and path.name.partition(".")[0] not in keep:
                    path.unlink(missing_ok=True)

    def drop_all(self) -> None:
        """Remove what anybody has staged: no round waits for it."""
        for place in self._incoming.iterdir():
            if place.is_dir():
                self.drop(DeviceName(place.name))

    def put(self, digest: Digest, data: bytes) -> None:
        """Stage and seal one blob."""
        self.stage(ROUND, digest, data)
        self.seal(ROUND, [digest])

    # out

    def get(self, digest: Digest, owner: DeviceName | None = None) -> bytes:
        """The bytes of a sealed blob or, with an ``owner``, of one that it staged. What comes from the disk is checked.

        Raises MissingBlob, or DamagedBlob once the file is in quarantine.
        """
        self._check(digest)
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
                return known
        places = [self._sealed(digest)]
        if owner is not None:
            places = [*places, self._staged(owner, digest), *places]  # it may be sealed meanwhile
        for path in places:
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != digest:
                    self._set_aside(path)
                    log.error("damaged on the disk; set aside", digest=digest, place=str(self._quarantine))
                    raise DamagedBlob(f"blob {digest} was damaged on the disk; see: tap-coordinator verify DIR", digest)
                self._remember(digest, data)
                return data
        raise self._missing(digest)

    def get_some(self, digests: Iterable[Digest], at_least: int = 2 << 20) -> list[bytes]:
        """The first blobs of ``digests``, as few as hold ``at_least`` bytes together (all, if they hold less)."""
        found: list[bytes] = []
        size = 0
        for digest in digests:
            found.append(self.get(digest))
            size += len(found[-1])
            if size >= at_least:
                break
        return found

    def recall(self, digest: Digest) -> bytes | None:
        """The bytes, if they are still in memory; the disk is not asked."""
        with self._lock:
            return self._known.get(digest)

    def is_whole(self, digest: Digest) -> bool:
        """Whether a sealed file holds the bytes of its name. Reads the disk, moves nothing."""
        self._check(digest)
        try:
            return _digest_of(self._sealed(digest)) == digest
        except FileNotFoundError:
            return False

    def replace(self, digest: Digest, data: bytes) -> None:
        """Put the right bytes in place of a file that is damaged or missing; what was there goes to quarantine."""
        self._set_aside(self._sealed(digest))
        self.put(digest, data)

    def digests(self) -> list[Digest]:
        """Every sealed blob, sorted."""
        return sorted(Digest(entry.name) for entry in os.scandir(self.directory) if _DIGEST.match(entry.name))

    # away

    def doom(self, digests: Iterable[Digest]) -> None:
        """Give up these blobs: `has` denies them at once, `collect` removes them later.

        One that is staged or sealed again meanwhile is saved. The caller sees to it that none gains a reference now.
        """
        with self._lock:
            self._doomed |= set(digests)

    def collect(self) -> int:
        """Remove the blobs that were given up; returns the bytes freed."""
        freed = 0
        for digest in sorted(self._doomed):
            with self._lock:
                path = self._sealed(digest)
                if digest not in self._doomed:
                    continue
                self._doomed.discard(digest)
                self._forget(digest)
                if not path.exists():
                    continue
                waste = self._incoming / f"{digest[:16]}-{secrets.token_hex(8)}.waste"
                os.rename(path, waste)
            freed += waste.stat().st_size  # the slow part goes without the lock
            waste.unlink()
        return freed

    def quarantined(self) -> dict[str, int]:
        """Bytes of each file in quarantine, by name."""
        return {entry.name: entry.stat().st_size for entry in os.scandir(self._quarantine)}

    def empty_quarantine(self) -> int:
        """Delete what is in quarantine; returns the bytes freed."""
        freed = 0
        for name, size in self.quarantined().items():
            (self._quarantine / name).unlink()
            freed += size
        return freed

    # inside

    def _set_aside(self, path: Path) -> str:
        """Move a file to quarantine; returns its name there. One that is gone already stays gone."""
        name = f"{path.name}.{secrets.token_hex(4)}"
        with self._lock, contextlib.suppress(FileNotFoundError):
            os.replace(path, self._quarantine / name)
            self._forget(Digest(path.name))
        return name

    def _remember(self, digest: Digest, data: bytes) -> None:
        with self._lock:
            if digest in self._known or len(data) > self._known_limit:
                return
            self._known[digest] = data
            self._known_size += len(data)
            while self._known_size > self._known_limit:
                self._known_size -= len(self._known.popitem(last=False)[1])

    def _forget(self, digest: Digest) -> None:
        """Called with the lock held."""
        data = self._known.pop(digest, None)
        self._known_size -= 0 if data is None else len(data)

    def _check(self, digest: Digest) -> None:
        if not _DIGEST.match(digest):
            raise ValueError(f"{digest!r} is not a sha256 in hexadecimal")

    def _sealed(self, digest: Digest) -> Path:
        return self.directory / digest

    def place_of(self, owner: DeviceName) -> Path:
        """Where the owner's staged blobs are."""
        if not _OWNER.match(owner):
            raise ValueError(f"{owner!r} is no name of an owner")
        return self._incoming / owner

    def _staged(self, owner: DeviceName, digest: Digest) -> Path:
        return self.place_of(owner) / digest

    def _missing(self, digest: Digest) -> MissingBlob:
        return MissingBlob(f"blob {digest} is missing; see: tap-coordinator verify DIR", digest)


def _write_whole(path: Path, data: bytes, digest: Digest) -> None:
    """Write ``data`` to a new file and fsync it. The kernel may take less than it is given (a disk nearly full, more
    than 2 GiB), so what it took is counted, and a file that came about in pieces is read back."""
    view, written, pieces = memoryview(data), 0, 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while written < len(view):
            written += os.write(descriptor, view[written : written + _LARGEST_WRITE])
            pieces += 1
        os.fsync(descriptor)
        if os.fstat(descriptor).st_size != len(view):
            raise OSError(f"{path.name} has another size than was written to it")
    finally:
        os.close(descriptor)
    if pieces > 1 and _digest_of(path) != digest:
        raise OSError(f"{path.name} does not hold what was written to it")


def _digest_of(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
