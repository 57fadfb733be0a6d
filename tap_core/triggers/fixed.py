"""The paper's decision: the phases' mean training losses differ by over a margin (docs/method.md section 4, step 3)."""

from tap_core.triggers.base import Decision, Evidence


class Fixed(Decision):
    """R[o] = 1 if h_fed[o] + margin[o] < h_personal[o]."""

    def replaces(self, evidence: Evidence) -> bool:
        margin = self.settings.margins.of(evidence.task.kind)
        return evidence.federated_loss + margin < evidence.personal_loss
