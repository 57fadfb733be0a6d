"""The first start of a federation: version 0 of every component goes from DIR/components into the coordinator's state.

It knows the directory that `tap init` makes; what happens afterwards is `federation.py`'s matter.
"""

import hashlib
import time
from pathlib import Path

from coordinator.blobs import BlobStore
from coordinator.store import Store, Version
from tap_core.errors import UsageError
from tap_core.manifest import COMPONENTS_DIRECTORY, MANIFEST_NAME, FederationManifest


def begin(directory: Path, manifest: FederationManifest, store: Store, blobs: BlobStore) -> None:
    """Record a federation and take in version 0 of its components from DIR/components, if it is new.

    Raises UsageError if a component's file is missing or damaged, or if the state belongs to another manifest.
    """
    if not store.versions():
        for spec in manifest.components.values():
            blobs.stage(spec.digest, _initial(directory, spec.digest))
        blobs.seal([spec.digest for spec in manifest.components.values()])
    versions = {name: Version(0, spec.digest, spec.size) for name, spec in manifest.components.items()}
    digest = hashlib.sha256((directory / MANIFEST_NAME).read_bytes()).hexdigest()
    store.begin(digest, versions, time.time())


def _initial(directory: Path, digest: str) -> bytes:
    path = directory / COMPONENTS_DIRECTORY / f"{digest}.safetensors"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; create the directory again with tap init") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise UsageError(f"{path} is damaged: its sha256 is not its name; create the directory again with tap init")
    return data
