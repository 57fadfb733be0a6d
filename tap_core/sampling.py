"""Which devices take part in a round: seeded, so that a run can be repeated and audited. No torch, no state."""

import hashlib
import random
from collections.abc import Sequence


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from the parts, the same on every machine and in every process (unlike ``hash``)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sample_devices(seed: int, round_number: int, attempt: int, roster: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` distinct devices of ``roster`` (all, if it has fewer) for one attempt at a round, sorted by name.

    Depends on the names in the roster and not on their order: the order of arrival must not change a run.
    """
    ordered = sorted(set(roster))
    chooser = random.Random(derive_seed(seed, "sample", round_number, attempt))
    return tuple(sorted(chooser.sample(ordered, min(count, len(ordered)))))
