"""What several kinds' losses are made of, per example (docs/method.md section 5)."""

import torch.nn.functional as F
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits) over the last axis, in float32: (..., C) to (...)."""
    logs = F.log_softmax(logits.float(), dim=-1)
    return -(logs.exp() * logs).sum(-1)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) over the last axis, in float32: (..., C) to (...)."""
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
