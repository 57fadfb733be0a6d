"""How batches are drawn from a device's examples: which, of which task, in which order.

It knows seeds and numbers of examples. It does not know what an example holds.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tap_core.examples import Example
from tap_core.seeds import derive_seed


def mixed_batches(
    data: Mapping[str, Sequence[Example]], batch_size: int, seed: int
) -> Iterator[dict[str, list[Example]]]:
    """Endless batches that mix the tasks: each task has its share of ``batch_size``, one example at the least.

    A task's examples come in a seeded order that does not depend on the other tasks, each once before any comes twice.
    """
    names = sorted(data)
    share, extra = divmod(batch_size, len(names))
    sizes = {name: max(1, share + (position < extra)) for position, name in enumerate(names)}
    streams = {name: _shuffled(len(data[name]), derive_seed(seed, "order", name)) for name in names}
    while True:
        yield {name: [data[name][next(streams[name])] for _ in range(sizes[name])] for name in names}


def _shuffled(count: int, seed: int) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(count).tolist()
