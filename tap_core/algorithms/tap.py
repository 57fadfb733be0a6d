"""TAP, Two-Stage Adaptive Personalization (arXiv 2509.26524), on one device: docs/method.md sections 4, 5 and 9.

It reads as the sections do. It does not know who carries tensors, files or other devices.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from tap_core.algorithms.base import Algorithm, DeviceState, Federated, Final, Personal, mixed, no_history
from tap_core.algorithms.replacement import Fired, SharedReplacement, groups, replaced_components
from tap_core.algorithms.selection import select
from tap_core.settings.base import AlgorithmSettings, Settings, one_of
from tap_core.settings.per_kind import Betas, Margins
from tap_core.training.optimizer import warmed_up
from tap_core.triggers import DECISIONS, INDICATORS
from tap_core.triggers.base import ComponentIndicator, Evidence, ExampleIndicator

if TYPE_CHECKING:
    from tap_core.algorithms.base import Tensors
    from tap_core.algorithms.device import Local
    from tap_core.names import ComponentName, TaskName
    from tap_core.settings.federation import FederationConfig, TaskConfig


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of another set a mixture may have."""


class DistillationSettings(Settings):
    """Stage 2 (docs/method.md section 5)."""

    steps: int = Field(
        default=50, ge=0, description="P, steps of the teacher and then of the student; 0 skips stage 2."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Constant, of teacher and student.")
    teacher_steps: int | None = Field(
        default=None, ge=0, description="Steps of the teacher; left out: as many as the student's."
    )
    teacher_learning_rate: float | None = Field(
        default=None, gt=0, description="Of the teacher; left out: the student's."
    )
    teacher_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The student starts from the mixture of the personal set and so much of the teacher.",
    )
    average: bool = Field(
        default=False,
        description="Whether teacher and student end with the mean of their values after each step.",
    )
    temperature: float = Field(default=1.0, gt=0, description="T of the softmax.")
    beta: Betas = Field(default=Betas(), description="By task kind: the weight of distillation beside the task's loss.")
    patience: int = Field(
        default=0,
        ge=0,
        description="Steps that may bring nothing on the decision sets before teacher or student ends its training, "
        "with the best values unless `average` says otherwise; 0: all steps in any case.",
    )
    skip_worse: bool = Field(
        default=False,
        description="Whether a task is not taught whose teacher is worse than the personal set on the decision set.",
    )


class TapSettings(AlgorithmSettings):
    """When personal components are replaced, and how the global model teaches the personal one at the end."""

    indicator: Annotated[str, one_of(INDICATORS)] = Field(
        default="loss", description="What held-out examples are scored by, for decisions that compare on them."
    )
    decision: Annotated[str, one_of(DECISIONS)] = Field(
        default="fixed", description="When a task takes over the federated components."
    )
    margins: Margins = Field(
        default=Margins(),
        description="By task kind: how much lower the federated loss must be than the personal one to replace it.",
    )
    shared_replacement: SharedReplacement = Field(
        default="all",
        description="Whether all or any of the local tasks that use a component must trigger before it is replaced.",
    )
    k: float = Field(
        default=1.0, ge=0, description="For the decision paired: standard errors by which the federated set is better."
    )
    replacement: Literal["hard", "soft"] = Field(
        default="hard",
        description="Whether what is replaced becomes a copy, or the mixture that is best on the decision sets.",
    )
    stage1: bool = Field(
        default=True,
        description="Whether rounds train a personal set; if not, stage 2 starts from the global one.",
    )
    selection: bool = Field(
        default=False,
        description="Whether each task chooses at the end, on its decision set, what answers for it.",
    )
    selection_by: Annotated[str, one_of(INDICATORS)] = Field(
        default="loss", description="What the held-out examples are scored by in that choice."
    )
    distillation: DistillationSettings = Field(default=DistillationSettings(), description="Stage 2.")

    @model_validator(mode="after")
    def _indicator_is_asked(self) -> "TapSettings":
        if self.indicator != "loss" and not DECISIONS[self.decision].needs_held_out:
            raise ValueError(
                f"'indicator' {self.indicator!r} is never asked by 'decision' {self.decision!r}; "
                'set decision = "paired", or leave the indicator out'
            )
        return self

    @model_validator(mode="after")
    def _selection_is_by_examples(self) -> "TapSettings":
        if issubclass(INDICATORS[self.selection_by], ComponentIndicator):
            raise ValueError(f"'selection_by' {self.selection_by!r} scores components, not examples; name another")
        return self

    @property
    def needs_decision_set(self) -> bool:
        stage2 = self.distillation
        looks = (self.replacement == "soft", self.selection, stage2.patience > 0, stage2.skip_worse)
        return any(looks) or DECISIONS[self.decision].needs_held_out


class Tap(Algorithm[TapSettings]):
    """Replacement by a trigger in stage 1, distillation in stage 2."""

    Settings = TapSettings

    def __init__(self, config: "FederationConfig", settings: TapSettings) -> None:
        super().__init__(config, settings)
        self.decision = DECISIONS.named(settings.decision)(settings)
        self.indicator = INDICATORS.named(settings.indicator)()
        self.selection_by = INDICATORS.named(settings.selection_by)()

    def personalize(self, local: "Local", round_number: int, state: DeviceState, federated: Federated) -> Personal:
        """Section 4, steps 3 and 4."""
        if not self.settings.stage1:
            return Personal(state.personal, no_history(local.tasks))
        model, trained = local.model, federated.trained
        # 3: where the trigger of a task fires, its part of the personal set becomes a copy of the trained one
        before = state.personal or trained
        model.load("personal", before)
        fired = {task.name: self._fires(local, task, federated.loss, state) for task in local.tasks}
        replaced = replaced_components(local.tasks, fired, self.settings.shared_replacement)
        model.load("personal", {**before, **{name: trained[name] for name in replaced}})
        shares = self._soften(local, before, trained, replaced) if self.settings.replacement == "soft" else {}
        # 4: train x_i on other batches
        rate, steps = warmed_up(self.config, round_number), self.config.training.steps
        loss = local.train("personal", "personal", round_number, steps=steps, learning_rate=rate)
        took = tuple(name for name in replaced if shares.get(name, 1) > 0)
        said = {name: R if isinstance(R, bool) else any(R.values()) for name, R in fired.items()}
        return Personal(model.state("personal"), loss, said, took, shares)

    def finish(self, local: "Local", state: DeviceState) -> Final:
        """Section 5: the global model, trained on locally for a while, teaches the personal one."""
        from tap_core.algorithms.distillation import teaching

        model, settings = local.model, self.settings.distillation
        sets = {"received": model.state("federated"), "stage1": model.state("personal")}
        if settings.steps:
            train = functools.partial(local.train, patience=settings.patience, average=settings.average)
            steps = settings.steps if settings.teacher_steps is None else settings.teacher_steps
            rate = settings.teacher_learning_rate or settings.learning_rate
            train("federated", "teacher", "stage 2", steps=steps, learning_rate=rate)
            if settings.teacher_share:
                model.load("personal", mixed(sets["stage1"], model.state("federated"), settings.teacher_share))
            taught = None if not settings.skip_worse else self._taught(local)
            extra = teaching(model, settings, local.accelerator, taught)
            steps, rate = settings.steps, settings.learning_rate
            train("personal", "student", "stage 2", steps=steps, learning_rate=rate, extra=extra)
        personal = model.state("personal") if settings.steps else sets["stage1"]
        if not self.settings.selection:
            return Final(personal)
        if settings.steps:
            teacher = model.state("federated")
            means = {f"mean-{share}": mixed(personal, teacher, share) for share in SHARES[1:-1]}
            sets = {"received": sets["received"], "teacher": teacher, **sets, "distilled": personal, **means}
        return self._selected(local, personal, sets)

    def _fires(
        self, local: "Local", task: "TaskConfig", federated_loss: Mapping["TaskName", float], state: DeviceState
    ) -> Fired:
        """R[o]. A history of infinity is that of a device which has not taken part yet."""
        ours, theirs = federated_loss[task.name], state.personal_loss[task.name]
        if theirs == math.inf:
            return math.isfinite(ours)
        indicator = self.indicator
        if isinstance(indicator, ComponentIndicator):
            gains = indicator.gains(local, task)
            return {
                name: self.decision.replaces(Evidence(task, ours, theirs, lambda gain=gain: (0 * gain, gain)))  # type: ignore[misc]
                for name, gain in gains.items()
            }

        @functools.cache
        def held_out() -> tuple[np.ndarray, np.ndarray]:
            return local.scores(indicator, "federated", task), local.scores(indicator, "personal", task)

        return self.decision.replaces(Evidence(task, ours, theirs, held_out))

    def _soften(
        self, local: "Local", before: "Tensors", trained: "Tensors", replaced: "Sequence[ComponentName]"
    ) -> "dict[ComponentName, float]":
        """Give each group of components that would be replaced, one after the other, the mixture of x and w with the
        least decision loss. Returns the share of w by component. The personal set is left with them."""
        now, shares = dict(before), dict["ComponentName", float]()
        for users, names in groups(local.tasks, replaced).items():
            ours = {name: before[name] for name in names}
            mixtures = {share: {**now, **mixed(ours, trained, share)} for share in SHARES}
            local.model.load("personal", now)
            score = local.relative_loss("personal", local.config.tasks_named(users))
            scores = {}
            for share, mixture in mixtures.items():
                local.model.load("personal", mixture)
                scores[share] = score()
            best = min(SHARES, key=scores.__getitem__)  # of equal ones the first, which takes over least
            now, shares = mixtures[best], {**shares, **dict.fromkeys(names, best)}
        local.model.load("personal", now)
        return shares

    def _taught(self, local: "Local") -> "Callable[[TaskName], bool]":
        """Which tasks have a teacher that is better than their pupil."""
        better = {
            task.name: local.losses("federated", task).mean() < local.losses("personal", task).mean()
            for task in local.tasks
        }
        return better.__getitem__

    def _selected(self, local: "Local", personal: "Tensors", sets: "Mapping[str, Tensors]") -> Final:
        """Each task's choice among the sets, of which the simpler come first."""
        assert isinstance(self.selection_by, ExampleIndicator)
        scores: dict[TaskName, dict[str, np.ndarray]] = {task.name: {} for task in local.tasks}
        for name, values in sets.items():
            local.model.load("personal", values)
            for task in local.tasks:
                scores[task.name][name] = local.scores(self.selection_by, "personal", task)
        chosen = {task: select(found) for task, found in scores.items()}
        others = {task: name for task, name in chosen.items() if sets[name] is not personal}
        return Final(personal, others, {name: sets[name] for name in sorted(set(others.values()))})
