"""Global components whose stored bytes are damaged or lost: put the same bytes back, or go back to an earlier version.

The same bytes are had from memory or, for version 0, from DIR/components. Where there are none, the newest kept version
that is whole takes their place. It reads blobs and writes blobs; which version counts is recorded by `Store.go_back`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from coordinator.audit import SERVICE
from coordinator.blobs import BlobStore
from coordinator.founding import initial_component
from coordinator.rounds import History
from coordinator.store import Store
from coordinator.versions import Version
from protocol.names import Digest
from tap_core.errors import TapError, UsageError
from tap_core.manifest import FederationManifest
from tap_core.names import ComponentName

log = structlog.get_logger("coordinator.repair")

Kept = Mapping[ComponentName, Sequence[Version]]
"""The kept versions of each component, the current one first."""


@dataclass(frozen=True)
class Findings:
    """What became of the components whose current version was not whole."""

    restored: list[ComponentName] = field(default_factory=list)
    """They have the same bytes again."""

    go_back: dict[ComponentName, int] = field(default_factory=dict)
    """The newest version that is whole."""

    lost: list[ComponentName] = field(default_factory=list)
    """No kept version is whole."""

    def why(self) -> str:
        names = ", ".join(f"{name} (to version {number})" for name, number in sorted(self.go_back.items()))
        return f"damaged on the disk, back to the newest whole version: {names}"

    def raise_if_lost(self) -> None:
        """Raise TapError if a component cannot be had in any version."""
        if self.lost:
            raise TapError(
                f"component {self.lost[0]!r} is damaged in every version that is kept ({len(self.lost)} are so);"
                " restore the directory from a backup, then serve again"
            )


def examine(directory: Path, kept: Kept, blobs: BlobStore) -> Findings:
    """Check the current version of every component on the disk, and put its bytes back where they can be had."""
    findings = Findings()
    for name, versions in sorted(kept.items()):
        current = versions[0].digest
        if blobs.is_whole(current):
            continue
        data = blobs.recall(current) or _initial(directory, current)
        if data is not None:
            blobs.replace(current, data)
            findings.restored.append(name)
            continue
        whole = next((version.version for version in versions[1:] if blobs.is_whole(version.digest)), None)
        if whole is None:
            findings.lost.append(name)
        else:
            findings.go_back[name] = whole
    if findings.restored or findings.go_back or findings.lost:
        facts = {"restored": findings.restored, "went_back": findings.go_back, "lost": findings.lost}
        log.error("components were damaged on the disk", **facts)
    return findings


def _initial(directory: Path, digest: Digest) -> bytes | None:
    try:
        return initial_component(directory, digest)
    except UsageError:
        return None


def repair_at_start(directory: Path, manifest: FederationManifest, store: Store, blobs: BlobStore) -> None:
    """Before anything is served: every component needs a whole current version. Raises TapError if one has none."""
    findings = examine(directory, store.kept_versions(manifest.config.rounds.keep_versions), blobs)
    findings.raise_if_lost()
    if findings.go_back:
        spend = round_under_way(store.history(), manifest.config.rounds.total)
        store.go_back(findings.go_back, act="repair", why=findings.why(), actor=SERVICE, spend=spend, at=time.time())


def round_under_way(history: History, total: int) -> tuple[int, int] | None:
    """The (round, attempt) that devices may have trained from the present versions; None if no attempt was opened."""
    if history.round >= total or (history.sampled is None and history.attempt == 0):
        return None
    return history.round, history.attempt


def roll_back(
    store: Store, blobs: BlobStore, manifest: FederationManifest, to: int, *, actor: str, at: float
) -> list[ComponentName]:
    """Take every component back to its value after ``to`` rounds; the federation goes on from there with new numbers.

    Returns the components that changed, sorted. Raises UsageError if one has no whole version that old.
    """
    kept = store.kept_versions(manifest.config.rounds.keep_versions)
    history = store.history()
    if not 0 <= to <= history.round:
        raise UsageError(f"round {to} is not between 0 and {history.round}, the number of rounds that are over")
    targets: dict[ComponentName, int] = {}
    for name, versions in sorted(kept.items()):
        target = next((version for version in versions if version.version <= to), None)
        if target is None or not blobs.is_whole(target.digest):
            whole = [[v.version for v in found if blobs.is_whole(v.digest)] for found in kept.values()]
            oldest = max(min(versions, default=history.round) for versions in whole)
            raise UsageError(
                f"component {name!r} has no whole version as old as round {to}; the oldest round to go back to is"
                f" {oldest} (rounds.keep_versions says how many are kept)"
            )
        if target.version != versions[0].version:
            targets[name] = target.version
    if targets:
        spend = round_under_way(history, manifest.config.rounds.total)
        store.go_back(targets, act="rollback", why=f"rolled back to round {to}", actor=actor, spend=spend, at=at)
    return sorted(targets)
