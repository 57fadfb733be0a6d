"""The decision that needs no margin: both sets are scored on the same held-out examples (docs/method.md section 9)."""

import math

import numpy as np

from tap_core.triggers.base import Decision, Evidence


class Paired(Decision):
    """R[o] = 1 if mean(d) > k SE(d), where d_j = score of x - score of w on example j."""

    needs_held_out = True

    def replaces(self, evidence: Evidence) -> bool:
        federated, personal = evidence.held_out()
        return better(federated, personal, self.settings.k)


def better(scores: np.ndarray, than: np.ndarray, k: float) -> bool:
    """Whether ``scores`` are lower by more than k standard errors of the paired difference's mean. One example, or
    none, shows nothing."""
    if len(scores) < 2:
        return False
    d = than - scores
    return bool(d.mean() > k * d.std(ddof=1) / math.sqrt(len(d)))
