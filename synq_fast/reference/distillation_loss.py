"""Reference of the distillation losses on logits."""

import torch

from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 20.0,
    alpha: float = 20.0,
    difficulty_threshold: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `(kl, ce, difficulty)`; see `synq_fast.ops.distillation_loss`."""
    student = to_compute(student_logits)
    teacher = to_compute(teacher_logits)
    batch = max(student.shape[0], 1)
    divergence = _divergence(teacher / temperature, student / temperature)
    kl = divergence.sum() * (alpha * temperature**2 / batch)

    column = labels[:, None]
    difficulty = 1 - constant(teacher).softmax(1).gather(1, column)[:, 0]
    cross_entropy = -student.log_softmax(1).gather(1, column)[:, 0]
    # A choice, not a product: an infinite loss of a hard sample times zero would be NaN.
    easy = difficulty < difficulty_threshold
    ce = torch.where(easy, cross_entropy, 0.0).sum() / batch
    return kl, ce, difficulty


def _divergence(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """Returns the elements `(B, C)` of KL(p || q), which are zero where p is zero."""
    log_p = p_logits.log_softmax(1)
    p = log_p.exp()
    absent = p == 0
    ratio = torch.where(absent, 0.0, log_p) - torch.where(absent, 0.0, q_logits.log_softmax(1))
    return p * ratio
