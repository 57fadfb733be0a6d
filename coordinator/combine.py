"""A round's new versions: for each component, the stored updates in, the aggregate out, as a staged blob.

Components are independent, so they are spread over a pool of threads; each thread holds one component's updates at a
time. With an optimizer at the server its moments are staged beside. It knows blobs and aggregation; it does not know
rounds, devices' connections or the database.
"""

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import NamedTuple

import structlog

from coordinator.blobs import ROUND, BlobError, BlobStore
from coordinator.forms import Form
from coordinator.norms import median
from coordinator.versions import Contribution, Version
from protocol.tensors import digest_of
from tap_core.names import ComponentName, DeviceName
from tap_core.settings.federation import RoundsConfig

BATCH_BYTES = 2 * 1024 * 1024
"""Bytes of updates that one job of the pool takes, if its components are smaller."""

log = structlog.get_logger("coordinator.combine")


class Job(NamedTuple):
    """One component: its form, its updates by device, and its version before the round."""

    form: Form
    given: Mapping[DeviceName, Contribution]
    before: Version


async def combine(
    number: int,
    updates: Mapping[DeviceName, Mapping[ComponentName, Contribution]],
    forms: Mapping[ComponentName, Form],
    versions: Mapping[ComponentName, Version],
    settings: RoundsConfig,
    blobs: BlobStore,
    pool: Executor,
) -> dict[ComponentName, Version]:
    """The components that round ``number`` changes, by name, each with its new version. Their blobs are staged.

    ``updates`` maps each contributing device to its components, ``forms`` and ``versions`` every component of the
    federation to its form and its current version. A component with fewer contributors than `rounds.min_cohort` keeps
    its version and is not in the result. Raises BlobError if an update is damaged or missing.
    """
    loop = asyncio.get_running_loop()
    jobs: list[Job] = []
    for name in sorted(forms):
        given = {device: components[name] for device, components in updates.items() if name in components}
        if len(given) >= max(1, settings.min_cohort):
            jobs.append(Job(forms[name], given, versions[name]))
    work = [loop.run_in_executor(pool, _combine_some, batch, number, settings, blobs) for batch in _batches(jobs)]
    return {name: version for some in await asyncio.gather(*work) for name, version in some.items()}


def _batches(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs in lists of about BATCH_BYTES: a thread is not worth its while for a few kilobytes."""
    batch: list[Job] = []
    size = 0
    for job in jobs:
        batch.append(job)
        size += sum(one.size for one in job.given.values())
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _combine_some(
    jobs: list[Job], number: int, settings: RoundsConfig, blobs: BlobStore
) -> dict[ComponentName, Version]:
    return {job.form.name: _combine_one(job, number, settings, blobs) for job in jobs}


def _combine_one(job: Job, number: int, settings: RoundsConfig, blobs: BlobStore) -> Version:
    form, given = job.form, job.given
    updates = {
        device: (contribution.examples, blobs.get(contribution.digest)) for device, contribution in given.items()
    }
    data, moments = form.aggregate(updates), None
    if settings.server != "plain" and form.values:
        data, moments = _advance(job, data, settings, blobs)
        blobs.stage(ROUND, digest_of(moments), moments)
    digest = digest_of(data)
    blobs.stage(ROUND, digest, data)
    several = len(given) > 1  # one device alone must not say what is usual, and so shut others out by tiny changes
    norm = median(contribution.norm for contribution in given.values()) if several else None
    return Version(number + 1, digest, len(data), len(given), norm, None if moments is None else digest_of(moments))


def _advance(job: Job, average: bytes, settings: RoundsConfig, blobs: BlobStore) -> tuple[bytes, bytes]:
    """The server's optimizer. Damaged moments begin anew; without the values before, the average stands in for them:
    a round goes on, and a device that trained from those values has nothing to mend."""
    form, before = job.form, job.before
    try:
        current = blobs.get(before.digest)
    except BlobError as error:
        log.error("component damaged, the round's average takes its place", component=form.name, why=str(error))
        return form.advance(average, average, None, settings)
    try:
        moments = None if before.moments is None else blobs.get(before.moments)
    except BlobError as error:
        log.error("moments damaged, they begin anew", component=form.name, why=str(error))
        moments = None
    return form.advance(average, current, moments, settings)
