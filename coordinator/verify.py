"""`tap-coordinator verify`: reads every byte that the federation refers to and compares it with its digest.

It only reads, so it may run beside the service (what the service replaces meanwhile may then be listed as missing). It
knows the directory, blobs and rows; it mends nothing.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text as sql

from coordinator.blobs import BlobStore
from coordinator.config import StatePaths
from coordinator.database import reading
from coordinator.store import Store
from protocol.names import Digest
from tap_core.errors import UsageError
from tap_core.manifest import COMPONENTS_DIRECTORY, FederationManifest

_CURRENT = "a start of the coordinator puts it right or says what is needed"
_OLDER = "only a rollback to it needs it: bring it back from a backup, or let newer versions take its place"
_UPDATE = "the device is asked for it again"


@dataclass(frozen=True)
class Report:
    """What was found. Names are those of components, devices or files; ``problems`` are lines for people."""

    checked: int
    bytes: int
    problems: list[str]
    unreferenced: list[str]
    quarantined: dict[str, int]


def verify(directory: Path, manifest: FederationManifest, store: Store, blobs: BlobStore) -> Report:
    """Check the database, version 0 in DIR/components, every kept version and every update that is not aggregated."""
    problems = _database(store)
    digests: dict[Digest, list[str]] = {}
    size = 0
    for name, spec in sorted(manifest.components.items()):
        path = directory / COMPONENTS_DIRECTORY / f"{spec.digest}.safetensors"
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != spec.digest:
                problems.append(f"{path} is damaged (version 0 of {name}); bring it back from a backup")
        except FileNotFoundError:
            problems.append(f"{path} is missing (version 0 of {name}); bring it back from a backup")
        size += spec.size
    if store.has_begun():
        for name, versions in store.kept_versions(manifest.config.rounds.keep_versions).items():
            for version in versions:
                mend = _CURRENT if version is versions[0] else _OLDER
                digests.setdefault(version.digest, []).append(f"version {version.version} of {name}; {mend}")
                size += version.size
        number = store.history().round
        for device, given in store.updates(number).items():
            for name, contribution in given.items():
                digests.setdefault(contribution.digest, []).append(f"the update of {name} by {device}; {_UPDATE}")
                size += contribution.size
    stored = set(blobs.digests())
    for digest, what in sorted(digests.items()):
        if digest not in stored:
            problems.append(f"blob {digest} is missing: {what[0]}")
        elif not blobs.is_whole(digest):
            problems.append(f"blob {digest} is damaged: {what[0]}")
    checked = len(digests) + len(manifest.components)
    return Report(checked, size, problems, sorted(stored - set(digests)), blobs.quarantined())


def _database(store: Store) -> list[str]:
    """SQLite can tell whether its file is whole; PostgreSQL sees to that by itself."""
    if store.engine.dialect.name != "sqlite":
        return []
    with reading(store.engine) as db:
        found = [row[0] for row in db.execute(sql("PRAGMA integrity_check(5)"))]
    return [] if found == ["ok"] else [f"the database is damaged: {line}" for line in found]


def blobs_of(paths: StatePaths) -> BlobStore:
    """The blobs of a state directory. Raises UsageError if there are none yet."""
    if not paths.blobs.is_dir():
        raise UsageError(f"{paths.root} holds no state yet; it begins with: tap-coordinator serve")
    return BlobStore(paths.blobs)
