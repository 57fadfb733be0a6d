"""The start of a federation's state: its identity, and version 0 of every component from DIR/components.

The state directory and the database carry one identity, so that neither is taken for another's: a coordinator that was
pointed at the wrong database would find no reference to the blobs that it holds. It knows the directory that `tap init`
makes; what happens afterwards is `federation.py`'s matter.
"""

import hashlib
import secrets
import time
from pathlib import Path

from coordinator.blobs import BlobStore
from coordinator.config import StatePaths
from coordinator.store import Store
from coordinator.versions import Version
from protocol.names import Digest
from tap_core.errors import UsageError
from tap_core.files import replace_private
from tap_core.manifest import COMPONENTS_DIRECTORY, MANIFEST_NAME, FederationManifest


def check_identity(paths: StatePaths, store: Store) -> None:
    """Raise UsageError unless the state directory and the database belong together. New ones do."""
    try:
        identity = paths.identity.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        identity = None
    if identity is not None and identity != store.identity():
        raise UsageError(
            f"{paths.root} does not belong to the database given; give the --database that this directory was served"
            " with, or serve a new directory"
        )


def begin(directory: Path, manifest: FederationManifest, store: Store, blobs: BlobStore) -> None:
    """Record a federation and take in version 0 of its components from DIR/components, if it is new.

    Raises UsageError if a component's file is missing or damaged, or if the state belongs to another manifest or
    another database. Nothing is written then.
    """
    paths = StatePaths(directory)
    check_identity(paths, store)
    if not store.has_begun():
        strangers = set(blobs.digests()) - {spec.digest for spec in manifest.components.values()}
        if strangers:  # from before there were identities
            raise UsageError(
                f"{paths.blobs} holds {len(strangers)} blobs that the database given does not know; give the --database"
                " that this directory was served with, or serve a new directory"
            )
        for spec in manifest.components.values():
            digest = Digest(spec.digest)
            blobs.put(digest, initial_component(directory, digest))
    versions = {name: Version(0, Digest(spec.digest), spec.size) for name, spec in manifest.components.items()}
    manifest_digest = hashlib.sha256((directory / MANIFEST_NAME).read_bytes()).hexdigest()
    store.begin(manifest_digest, versions, secrets.token_hex(16), time.time())
    identity = store.identity()
    assert identity is not None, "begin() gives one"
    if not paths.identity.exists():  # after the database: a file without its row is a mismatch
        replace_private(paths.identity, (identity + "\n").encode())


def initial_component(directory: Path, digest: Digest) -> bytes:
    """Version 0 of a component as `tap init` wrote it. Raises UsageError if its file is missing or damaged."""
    path = directory / COMPONENTS_DIRECTORY / f"{digest}.safetensors"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; create the directory again with tap init") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise UsageError(f"{path} is damaged: its sha256 is not its name; create the directory again with tap init")
    return data
