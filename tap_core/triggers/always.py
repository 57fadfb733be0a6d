"""The decision for soft replacement, which finds out how much is worth taking over (docs/method.md section 9)."""

from tap_core.triggers.base import Decision, Evidence


class Always(Decision):
    """R[o] = 1."""

    def replaces(self, evidence: Evidence) -> bool:
        return True
