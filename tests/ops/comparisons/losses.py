"""The loss kernels against float64."""

import torch

from synq_fast import ops
from tests import logit_cases, statistics_cases


def compare_distillation(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Values and gradients for one pair of logits."""
    student, teacher, labels = logit_cases.random_logits(shape, dtype)
    leaves = student.float().requires_grad_(), teacher.float().requires_grad_()
    constants = 4.0, 3.0, 0.9
    kl, ce, difficulty = ops.distillation_loss(
        *leaves, labels, temperature=4.0, alpha=3.0, difficulty_threshold=0.9
    )
    halves = ops.distillation_loss(
        student, teacher, labels, temperature=4.0, alpha=3.0, difficulty_threshold=0.9
    )
    for value, half in zip((kl, ce, difficulty), halves, strict=True):
        assert torch.equal(value, half)
    of_kl, of_teacher = torch.autograd.grad(kl, leaves, retain_graph=True)
    (of_ce,) = torch.autograd.grad(ce, leaves[0])
    actual = kl, ce, difficulty, of_kl, of_ce, of_teacher
    logit_cases.check_losses(actual, student, teacher, labels, *constants)


def compare_statistics(x: torch.Tensor) -> None:
    """Losses and gradients of one layer."""
    mean, var = statistics_cases.running(x.shape[1])
    leaf = x.detach().requires_grad_()
    losses = ops.bn_statistics_loss(leaf, mean, var)
    statistics_cases.check_losses(losses, x, mean, var)
    _, _, of_mean, of_var = statistics_cases.exact(x, mean, var)
    (gradient,) = torch.autograd.grad(losses[0] + 3 * losses[1], leaf)
    assert gradient.stride() == torch.empty_like(x).stride()
    statistics_cases.check_gradient(gradient, of_mean + 3 * of_var, x.dtype)


def main() -> int:
    """Goes through all cases."""
    count = 0
    for dtype in logit_cases.DTYPES:
        for shape in (*logit_cases.CASES, (40, 1025)):
            compare_distillation(shape, dtype)
            count += 1
        for shape in (*statistics_cases.SHAPES, (16, 12, 57, 57), (300, 24, 9)):
            for _, x in statistics_cases.layouts(shape):
                compare_statistics(x.to(dtype))
                count += 1
    return count
