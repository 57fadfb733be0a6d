"""Which devices take part in a round: seeded, so that a run can be repeated and audited. No torch, no state."""

import random
from collections.abc import Sequence

from tap_core.names import DeviceName
from tap_core.seeds import derive_seed


def sample_devices(
    seed: int, round_number: int, attempt: int, roster: Sequence[DeviceName], count: int
) -> tuple[DeviceName, ...]:
    """``count`` distinct devices of ``roster`` (all, if it has fewer) for one attempt at a round, sorted by name.

    Depends on the names in the roster and not on their order: the order of arrival must not change a run.
    """
    ordered = sorted(set(roster))
    chooser = random.Random(derive_seed(seed, "sample", round_number, attempt))
    return tuple(sorted(chooser.sample(ordered, min(count, len(ordered)))))
