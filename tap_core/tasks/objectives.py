"""Losses and metrics of the four task kinds, per example (METHOD.md sections 3, 5 and 6).

Everything here is a mean within one example and is returned per example, so that a history or a metric never depends on
the size of a batch or on a task's share of it (METHOD.md section 8, trap 10). It knows outputs and targets, no model.
"""

import re
from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tap_core.components import TaskKind
from tap_core.tasks.batch import IGNORED, TaskBatch


class Metric(NamedTuple):
    """A metric's name and direction."""

    name: str
    higher_is_better: bool


METRICS: dict[TaskKind, Metric] = {
    "image_classification": Metric("accuracy", True),
    "text_classification": Metric("accuracy", True),
    "image_generation": Metric("mse", False),
    "text_generation": Metric("token_f1", True),
}


def losses(output: Tensor, batch: TaskBatch) -> Tensor:
    """The training loss of each example, float32 (batch,).

    Cross-entropy for classification, mean squared error of normalised pixels for image generation, mean cross-entropy
    over an answer's tokens, padding ignored, for text generation.
    """
    output = output.float()
    if batch.task.kind == "image_generation":
        return squared_error(output, batch.target)
    if batch.task.kind == "text_generation":
        labels = batch.target[:, 1:]
        each = F.cross_entropy(output.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return _mean_over_words(each, labels)
    return F.cross_entropy(output, batch.target, reduction="none")


def divergences(student: Tensor, teacher: Tensor, batch: TaskBatch, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each example, float32 (batch,) (METHOD.md section 5).

    For text the mean over the answer's tokens. Image generation has no classes: the mean squared difference of the
    outputs, without T.
    """
    student, teacher = student.float(), teacher.float()
    if batch.task.kind == "image_generation":
        return squared_error(student, teacher)
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    each = temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return _mean_over_words(each, batch.target[:, 1:]) if batch.task.kind == "text_generation" else each


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 over the bags of lower-case words; 1 if both are empty."""
    given, wanted = _words(answer), _words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of normalised pixels of each image: (batch, 3, h, w) twice, to (batch,)."""
    return (output.float() - target).square().mean(dim=(1, 2, 3))


def hits(output: Tensor, target: Tensor) -> Tensor:
    """1 where the likeliest class is the right one: (batch, classes) and (batch,), to float32 (batch,)."""
    return (output.argmax(dim=-1) == target).to(torch.float32)


def _mean_over_words(each: Tensor, labels: Tensor) -> Tensor:
    real = (labels != IGNORED).to(each.dtype)
    return (each * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
