"""What `soak.py` makes of what it saw: which failed rounds were to be expected, what grew, and whether bits differ.

Functions of plain values; the two that read a federation's state directory are at the end. It starts nothing.
"""

import itertools
import os
import random
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from coordinator.blobs import BlobError, BlobStore
from coordinator.config import StatePaths
from coordinator.database import connect, reading
from coordinator.schema import component_versions
from protocol.tensors import digest_of

MEGABYTE = 1_000_000
LONG_LIFE = 60.0
"""Seconds that a coordinator must have lived for its memory to say something."""
WARM_UP = 30.0
"""Seconds at the beginning of a life that are left out."""
TEN_MINUTES = 600.0


@dataclass(frozen=True)
class Sample:
    """The coordinator at one time (seconds of any clock): memory and disk in bytes, and open descriptors."""

    at: float
    memory: int
    descriptors: int
    disk: int


@dataclass(frozen=True)
class Absence:
    """A device was kept away on purpose, for longer than a round lasts. Seconds since 1970."""

    device: str
    since: float
    until: float


@dataclass(frozen=True)
class Values:
    """The components of a federation: digest by component and version, and the bytes of each one's last version."""

    digests: Mapping[tuple[str, int], str]
    final: Mapping[str, bytes]

    @property
    def last(self) -> dict[str, int]:
        """The last version of each component."""
        return {name: version for name, version in sorted(self.digests)}


def kill_times(chance: random.Random, begin: float, end: float) -> list[float]:
    """When to kill the coordinator between ``begin`` and ``end``: after a short, a middling and a long life in any
    order, and again; once at least."""
    longest = max(30.0, 0.4 * (end - begin))
    kinds = ((2.0, 15.0), (15.0, 45.0), (0.7 * longest, longest))
    times: list[float] = []
    at = begin
    while True:
        for least, most in chance.sample(kinds, len(kinds)):
            at += chance.uniform(least, most)
            if at >= end:
                return times or [begin + chance.uniform(0.2, 0.8) * (end - begin)]
            times.append(at)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How fast it grows, a second: the median over all pairs of points (Theil and Sen), which a spike does not move.

    0 for fewer than two points; long series are thinned out to 300 points.
    """
    points = points[:: -(-len(points) // 300) or 1]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(points)
        for later in points[place + 1 :]
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def growth(life: Sequence[Sample], what: str) -> float | None:
    """The slope of one quantity in ten minutes, after warm-up; None if the life was too short to tell."""
    if not life or life[-1].at - life[0].at < LONG_LIFE:
        return None
    warm = life[0].at + WARM_UP
    return TEN_MINUTES * slope([(sample.at, getattr(sample, what)) for sample in life if sample.at >= warm])


def is_expected(attempt: Mapping[str, Any], honest: Collection[str], absences: Iterable[Absence], grace: float) -> bool:
    """Whether an attempt (as `tap-coordinator rounds --json` tells it) had to fail: a device was kept away while it was
    open, or had been until ``grace`` seconds before, and no other honest device was missing."""
    closed = attempt["closed_at"]
    absent = {
        absence.device
        for absence in absences
        if absence.since < closed and attempt["opened_at"] < absence.until + grace
    }
    return bool(absent) and set(attempt["missing"]) & set(honest) <= absent


def longest_gap(attempts: Iterable[Mapping[str, Any]]) -> float:
    """Most seconds from one commit to the next."""
    closed = sorted(attempt["closed_at"] for attempt in attempts if attempt["status"] == "committed")
    return max((later - earlier for earlier, later in itertools.pairwise(closed)), default=0.0)


def wrong_contributors(attempts: Iterable[Mapping[str, Any]], honest: Collection[str]) -> list[str]:
    """The committed rounds that counted others than exactly the honest devices, a line for each."""
    lines = []
    for attempt in attempts:
        if attempt["status"] == "committed" and set(attempt["contributors"]) != set(honest):
            strange = sorted(set(attempt["contributors"]) ^ set(honest))
            lines.append(f"round {attempt['round']} counted, or lacks, {', '.join(strange)}")
    return lines


def differences(one: Values, other: Values) -> list[str]:
    """How two runs differ, a line for each component that does; none if they are equal to the bit.

    Every version that both still know is compared by its digest, the last one by its bytes.
    """
    lines = []
    for name in sorted(one.last.keys() | other.last.keys()):
        versions = one.last.get(name), other.last.get(name)
        if versions[0] != versions[1]:
            lines.append(f"{name}: version {versions[0]} in one, {versions[1]} in the other")
            continue
        known = {version for component, version in one.digests.keys() & other.digests.keys() if component == name}
        unequal = [v for v in sorted(known) if one.digests[name, v] != other.digests[name, v]]
        if unequal:
            lines.append(f"{name}: differs from version {unequal[0]} on")
        elif one.final[name] != other.final[name]:
            lines.append(f"{name}: {_where(one.final[name], other.final[name])}")
    return lines


def _where(one: bytes, other: bytes) -> str:
    if len(one) != len(other):
        return f"{len(one)} bytes in one, {len(other)} in the other"
    place = next(place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return f"byte {place} differs"


def values_in(directory: Path, federation: str) -> Values:
    """The components that a federation directory has come to. Raises BlobError for one that is lost or damaged."""
    paths = StatePaths(directory)
    engine, table = connect(paths.database_url("")), component_versions
    with reading(engine) as db:
        rows = db.execute(select(table).where(table.c.federation == federation)).all()
    engine.dispose()
    digests = {(row.component, row.version): row.digest for row in rows}
    blobs = BlobStore(paths.blobs)
    try:
        final = {name: blobs.get(digests[name, version]) for name, version in Values(digests, {}).last.items()}
    finally:
        blobs.close()
    for name, version in Values(digests, {}).last.items():
        if digest_of(final[name]) != digests[name, version]:
            raise BlobError(f"the bytes of {name} are damaged")
    return Values(digests, final)


def disk_usage(directory: Path) -> int:
    """Bytes of the files under a directory that others write to meanwhile."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total
