"""How batches are drawn from a device's examples: which, of which task, in which order.

The source is docs/method.md section 4, step 2. It knows seeds and numbers of examples, not what an example holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from tap_core.names import TaskName
from tap_core.seeds import derive_seed
from tap_core.settings.federation import Shares

E = TypeVar("E")
"""An example, or its number."""


def mixed_batches(
    data: Mapping[TaskName, Sequence[E]], batch_size: int, seed: int, shares: Shares = "proportional"
) -> Iterator[dict[TaskName, list[E]]]:
    """Endless batches that mix the tasks: each task has its share of ``batch_size`` (`task_shares`) in every batch.

    A task's examples come in a seeded order that does not depend on the other tasks, each once before any comes twice.
    """
    names = sorted(data)
    sizes = task_shares({name: len(data[name]) for name in names}, batch_size, shares)
    streams = {name: _shuffled(len(data[name]), derive_seed(seed, "order", name)) for name in names}
    while True:
        yield {name: [data[name][next(streams[name])] for _ in range(sizes[name])] for name in names}


def task_shares(examples: Mapping[TaskName, int], batch_size: int, shares: Shares) -> dict[TaskName, int]:
    """How many of a batch's examples each task has, one at the least.

    ``examples``: n_{i,o} by task. Proportional shares are quotas batch_size * n_{i,o} / sum n_{i,o}, rounded by the
    largest remainder, of equal ones the task first in order of names. A task whose quota is below one gets one, and
    the others share what remains. They add up to ``batch_size`` unless there are more tasks than that.
    """
    weights = dict(sorted(examples.items())) if shares == "proportional" else dict.fromkeys(sorted(examples), 1)
    size = max(batch_size, len(weights))
    sizes: dict[TaskName, int] = {}
    while small := [name for name, n in weights.items() if n * size < sum(weights.values())]:
        sizes |= dict.fromkeys(small, 1)
        size -= len(small)
        weights = {name: n for name, n in weights.items() if name not in sizes}
    total = sum(weights.values())
    sizes |= {name: n * size // total for name, n in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(weights[name] * size % total), name))
    for name in by_remainder[: max(batch_size, len(examples)) - sum(sizes.values())]:
        sizes[name] += 1
    return dict(sorted(sizes.items()))


def _shuffled(count: int, seed: int) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(count).tolist()
