"""Global components on the device's disk, named by the sha256 of their bytes.

A component that the coordinator names and the cache holds is not sent again. It knows bytes and digests; it does not
know what a component is, nor rounds: the caller says which digests are still of use.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from protocol.names import Digest
from tap_core.files import make_private_directory, replace_private

_SUFFIX = ".safetensors"


class ComponentCache:
    """A directory of files ``{digest}.safetensors``; every write is atomic and every read is verified."""

    def __init__(self, directory: Path):
        self._directory = directory
        make_private_directory(directory)

    def get(self, digest: Digest) -> bytes | None:
        """The bytes with this digest, or None. A file that does not match its name is removed and counts as absent."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            path.unlink(missing_ok=True)
            return None
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        """Store ``data``. Raises ValueError if ``digest`` is not its sha256, OSError if it cannot be written."""
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"the data's sha256 is not {digest}")
        replace_private(self._path(digest), data, durable=False)

    def missing(self, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        """Those of ``digests`` that `get` would not give, in their order, each once."""
        return tuple(digest for digest in dict.fromkeys(digests) if self.get(digest) is None)

    def keep_only(self, digests: Iterable[Digest]) -> int:
        """Remove everything but ``digests``; returns how many files went."""
        keep = {digest + _SUFFIX for digest in digests}
        removed = 0
        for path in self._directory.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, digest: Digest) -> Path:
        return self._directory / (digest + _SUFFIX)
