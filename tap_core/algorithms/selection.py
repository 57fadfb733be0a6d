"""Which of several sets answers for a task: the simplest that no other beats clearly (docs/method.md section 9).

It knows losses on the examples that are never trained on. It does not know sets or models; no torch.
"""

from collections.abc import Mapping

import numpy as np

from tap_core.triggers.paired import better


def select(losses: Mapping[str, np.ndarray]) -> str:
    """A name of ``losses``, float64 (n,) each over the same examples, in order of preference: a later one is chosen
    only if it is better than the best before it by the standard error of the paired difference."""
    chosen, *others = losses
    for name in others:
        if better(losses[name], losses[chosen], 1):
            chosen = name
    return chosen
