"""Reference of the distance in structure between what a student's and a teacher's heads give."""

import torch

from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute

C2 = 9e-4


def structural_similarity_loss(
    teacher: torch.Tensor, student: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """One minus the mean similarity; see `synq_fast.ops.structural_similarity_loss`."""
    given = (teacher, student) if weight is None else (teacher, student, weight)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in given) else torch.float32
    t, q = constant(teacher).to(dtype), student.to(dtype)
    if student.shape[:2].numel() * student.shape[3] == 0:
        return q.sum()
    share = None if weight is None else shares(constant(weight).to(dtype), student)
    return 1 - _similarity(t, q, share).mean()


def shares(weight: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Returns each position's share of the weights, (B, H, N, 1)."""
    weight = weight.expand(student.shape[:-1])
    return (weight / weight.sum(-1, keepdim=True)).unsqueeze(-1)


def mean_of(x: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean over the positions, (B, H, 1, d)."""
    return x.mean(-2, keepdim=True) if share is None else (share * x).sum(-2, keepdim=True)


def _similarity(t: torch.Tensor, q: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    t, q = t - mean_of(t, share), q - mean_of(q, share)
    deviations = mean_of(t.square(), share) + mean_of(q.square(), share)
    return (2 * mean_of(t * q, share) + C2) / (deviations + C2)


def structural_similarity_statistics(
    teacher: torch.Tensor, student: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss and, of each channel of each head, what its gradient needs, (B, H, 4, d).

    The means of teacher and student, the similarity, and the gradient's slope for a weight of 1.
    """
    t, q = to_compute(teacher), to_compute(student)
    if student.shape[:2].numel() * student.shape[3] == 0:
        shape = (*student.shape[:2], 4, student.shape[3])
        return q.new_zeros(()), q.new_zeros(shape)
    share = None if weight is None else shares(to_compute(weight), student)
    of_t, of_q = mean_of(t, share), mean_of(q, share)
    deviations = mean_of((t - of_t).square(), share) + mean_of((q - of_q).square(), share) + C2
    similarity = (2 * mean_of((t - of_t) * (q - of_q), share) + C2) / deviations
    if weight is None:
        total = torch.full_like(deviations[..., :1], student.shape[2])
    else:
        total = to_compute(weight).expand(student.shape[:-1]).sum(-1)[..., None, None]
    slope = 2 / (deviations * total * similarity.numel())
    return 1 - similarity.mean(), torch.cat([of_t, of_q, similarity, slope], -2)


def structural_similarity_gradient(
    grad: torch.Tensor,
    teacher: torch.Tensor,
    student: torch.Tensor,
    weight: torch.Tensor | None,
    statistics: torch.Tensor,
) -> torch.Tensor:
    """Returns the gradient of the student."""
    of_t, of_q, similarity, slope = statistics.split(1, -2)
    t, q = to_compute(teacher) - of_t, to_compute(student) - of_q
    result: torch.Tensor = grad * slope * (similarity * q - t)
    if weight is not None:
        result = result * to_compute(weight).expand(student.shape[:-1]).unsqueeze(-1)
    return result
