"""Inputs of the distillation losses for every kernel, and the float64 values they are held to."""

import torch

from synq_fast import reference
from tests.tolerances import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

CASES = {
    (1, 2): "one image, the fewest classes",
    (3, 2): "fewer classes than any vector",
    (5, 10): "CIFAR-10",
    (2, 129): "one class more than whole vectors of 16-bit elements",
    (3, 1000): "ImageNet",
    (2, 2056): "more than one block of threads takes at once",
}


def random_logits(
    shape: tuple[int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns student, teacher and labels; the teacher is sure of most."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, *shape, generator=generator) * 3
    labels = torch.randint(shape[1], shape[:1], generator=generator)
    teacher[torch.arange(shape[0])[::2], labels[::2]] += 12
    return student.to(dtype), teacher.to(dtype), labels


def exact(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
) -> tuple[torch.Tensor, ...]:
    """Returns the values, then the gradients (kl, student), (ce, student), (kl, teacher)."""
    student = student.detach().double().requires_grad_()
    teacher = teacher.detach().double().requires_grad_()
    kl, ce, difficulty = reference.distillation_loss(
        student, teacher, labels,
        temperature=temperature, alpha=alpha, difficulty_threshold=threshold,
    )  # fmt: skip
    of_kl, of_teacher = torch.autograd.grad(kl, [student, teacher], retain_graph=True)
    (of_ce,) = torch.autograd.grad(ce, student)
    return kl.detach(), ce.detach(), difficulty, of_kl, of_ce, of_teacher


def check_losses(
    actual: tuple[torch.Tensor, ...],
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
) -> None:
    """Asserts the three values and three gradients."""
    expected = exact(student, teacher, labels, temperature, alpha, threshold)
    kinds = {
        "kl_per_factor": alpha * temperature**2,
        "cross_entropy": 5.0,
        "probability": 1.0,
        "logit_gradient": alpha * max(temperature, 1.0),
    }
    names = [*kinds, "logit_gradient", "logit_gradient"]
    assert len(actual) == len(names)
    for value, wanted, kind in zip(actual, expected, names, strict=True):
        assert value.dtype == torch.float32
        assert value.shape == wanted.shape
        assert_close(value.detach().cpu(), wanted, kind, factor=kinds[kind])
