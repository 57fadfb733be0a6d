"""A component's versions, and what an update adds to the next one, as the coordinator remembers them.

It knows digests and numbers; it does not know where bytes or rows are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.names import Digest
from tap_core.names import ComponentName


@dataclass(frozen=True)
class Contribution:
    """One component of an accepted update: where its bytes are, n_{i,r}, and the norm of its change if measured."""

    digest: Digest
    size: int
    examples: int
    norm: float | None = None


@dataclass(frozen=True)
class Version:
    """A component's value: version 0 is that of `tap init`, version t + 1 was made by round t."""

    version: int
    digest: Digest
    size: int
    contributors: int = 0
    norm: float | None = None
    """Median of its contributors' update norms."""
    moments: Digest | None = None
    """Digest of the moments of the server's optimizer after it, if it has one."""

    @property
    def digests(self) -> set[Digest]:
        """Of the blobs that it needs."""
        return {self.digest} if self.moments is None else {self.digest, self.moments}


def digests_of(versions: Mapping[ComponentName, list[Version]]) -> set[Digest]:
    """Of the blobs that these versions need."""
    return set().union(*(version.digests for of_one in versions.values() for version in of_one))
