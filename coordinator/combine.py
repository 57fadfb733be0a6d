"""A round's new versions: for each component, the stored updates in, the aggregate out, as a staged blob.

Components are independent, so they are spread over a pool of threads; each thread holds one component's updates at a
time. It knows blobs and aggregation; it does not know rounds, devices' connections or the database.
"""

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor

from coordinator.blobs import ROUND, BlobStore
from coordinator.forms import Form
from coordinator.norms import median
from coordinator.store import Contribution, Version
from protocol.tensors import digest_of
from tap_core.names import ComponentName, DeviceName

BATCH_BYTES = 2 * 1024 * 1024
"""Bytes of updates that one job of the pool takes, if its components are smaller."""

Job = tuple[Form, dict[DeviceName, Contribution]]


async def combine(
    number: int,
    updates: Mapping[DeviceName, Mapping[ComponentName, Contribution]],
    forms: Mapping[ComponentName, Form],
    min_cohort: int,
    blobs: BlobStore,
    pool: Executor,
) -> dict[ComponentName, Version]:
    """The components that round ``number`` changes, by name, each with its new version. Their blobs are staged.

    ``updates`` maps each contributing device to its components, ``forms`` every component of the federation to its
    form. A component with fewer contributors than ``min_cohort`` keeps its version and is not in the result. Raises
    BlobError if an update is damaged or missing.
    """
    loop = asyncio.get_running_loop()
    jobs: list[Job] = []
    for name in sorted(forms):
        given = {device: components[name] for device, components in updates.items() if name in components}
        if len(given) >= max(1, min_cohort):
            jobs.append((forms[name], given))
    work = [loop.run_in_executor(pool, _combine_some, batch, number, blobs) for batch in _batches(jobs)]
    return {name: version for some in await asyncio.gather(*work) for name, version in some.items()}


def _batches(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs in lists of about BATCH_BYTES: a thread is not worth its while for a few kilobytes."""
    batch: list[Job] = []
    size = 0
    for job in jobs:
        batch.append(job)
        size += sum(one.size for one in job[1].values())
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _combine_some(jobs: list[Job], number: int, blobs: BlobStore) -> dict[ComponentName, Version]:
    return {form.name: _combine_one(form, given, number, blobs) for form, given in jobs}


def _combine_one(form: Form, given: Mapping[DeviceName, Contribution], number: int, blobs: BlobStore) -> Version:
    updates = {
        device: (contribution.examples, blobs.get(contribution.digest)) for device, contribution in given.items()
    }
    data = form.aggregate(updates)
    digest = digest_of(data)
    blobs.stage(ROUND, digest, data)
    several = len(given) > 1  # one device alone must not say what is usual, and so shut others out by tiny changes
    norm = median(contribution.norm for contribution in given.values()) if several else None
    return Version(number + 1, digest, len(data), len(given), norm)
