"""TAP as its authors published it (arXiv 2509.26524): docs/method.md sections 4 and 5 without the departures.

The trigger compares training losses with a margin, what is replaced becomes a copy, and teacher and student have P
steps at one small rate. It asks for no held-out examples.
"""

from typing import Annotated, Literal

from pydantic import Field

from tap_core.algorithms.tap import DistillationSettings, Tap, TapSettings
from tap_core.settings.base import one_of
from tap_core.triggers import DECISIONS


class PaperDistillation(DistillationSettings):
    """Stage 2 of the paper."""

    learning_rate: float = Field(default=1e-4, gt=0, description="Of the student, constant.")
    teacher_steps: int | None = Field(
        default=None, ge=0, description="Steps of the teacher; left out: as many as the student's."
    )
    teacher_learning_rate: float | None = Field(default=None, gt=0, description="Left out: the student's.")
    teacher_share: float = Field(default=0.0, ge=0, le=1, description="Of the teacher in the student's start.")
    average: bool = Field(default=False, description="Whether teacher and student end with the means of their values.")
    patience: int = Field(default=0, ge=0, description="Steps that may bring nothing on decision sets; 0: any number.")

    def rates(self, rounds: float) -> tuple[float, float]:
        return self.teacher_learning_rate or self.learning_rate, self.learning_rate


class PaperSettings(TapSettings):
    """The paper's trigger, replacement and stage 2."""

    decision: Annotated[str, one_of(DECISIONS)] = Field(
        default="fixed", description="When a task takes over the federated components."
    )
    replacement: Literal["hard", "soft"] = Field(default="hard", description="What is replaced becomes a copy.")
    selection: bool = Field(default=False, description="Whether each task chooses at the end what answers for it.")
    distillation: PaperDistillation = Field(default=PaperDistillation(), description="Stage 2.")


class PaperTap(Tap):
    Settings = PaperSettings
