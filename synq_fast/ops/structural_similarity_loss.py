"""The distance in structure between what a student's and a teacher's heads give."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference.structural_similarity_loss import (
    structural_similarity_gradient,
    structural_similarity_statistics,
)
from synq_fast.reference.structural_similarity_loss import structural_similarity_loss as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _check(teacher: Tensor, student: Tensor, weight: Tensor | None) -> None:
    check_float_tensor("teacher", teacher)
    check_float_tensor("student", student)
    check_dims("student", student, "B, H, N, d")
    check_shape("teacher", teacher, student.shape, "that of student")
    check_same_device("teacher", teacher, "student", student)
    if student.shape[2] == 0:
        raise ValueError(f"student has no position, its shape is {shape_text(student)}")
    if weight is None:
        return
    check_float_tensor("weight", weight)
    check_same_device("weight", weight, "student", student)
    wanted = student.shape[:-1]
    sizes = zip(reversed(weight.shape), reversed(wanted), strict=False)
    if weight.ndim > 3 or any(size not in (1, full) for size, full in sizes):
        raise ValueError(
            f"weight must broadcast to (B, H, N) = {tuple(wanted)}, got {shape_text(weight)}"
        )


def _check_types(teacher: Tensor, student: Tensor) -> None:
    if teacher.dtype != student.dtype:
        raise TypeError(
            f"teacher must have the type of student, {student.dtype}, got {teacher.dtype}"
        )


def _fake(teacher: Tensor, student: Tensor, weight: Tensor | None) -> Pair:
    _check(teacher, student, weight)
    _check_types(teacher, student)
    batch, heads, _, channels = student.shape
    value, statistics = (
        student.new_empty(shape, dtype=torch.float32) for shape in ((), (batch, heads, 4, channels))
    )
    return value, statistics


def _fake_backward(
    grad: Tensor, teacher: Tensor, student: Tensor, weight: Tensor | None, statistics: Tensor
) -> Tensor:
    _, wanted = _fake(teacher, student, weight)
    check_shape("statistics", statistics, wanted.shape, "(B, H, 4, d)")
    return torch.empty_like(student)


def _reference_backward(
    grad: Tensor, teacher: Tensor, student: Tensor, weight: Tensor | None, statistics: Tensor
) -> Tensor:
    gradient = structural_similarity_gradient(grad, teacher, student, weight, statistics)
    return like(gradient.to(student.dtype), student)


# `statistics`, (B, H, 4, d): what the reference's `structural_similarity_statistics` says.
register(
    "structural_similarity_loss_backward",
    "(Tensor grad, Tensor teacher, Tensor student, Tensor? weight, Tensor statistics) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="structural_similarity_loss",
)
_op = register(
    "structural_similarity_loss",
    "(Tensor teacher, Tensor student, Tensor? weight) -> (Tensor value, Tensor statistics)",
    fake=_fake,
    reference=structural_similarity_statistics,
    gradients={
        "student": "structural_similarity_loss_backward("
        "grad_value, teacher, student, weight, statistics)"
    },
)


def structural_similarity_loss(
    teacher: torch.Tensor, student: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Measures how far a student's heads are from the structure of a teacher's.

    For each channel of each head of each image, with means, variances and the covariance of
    teacher t and student q over the N positions:

        S = (2 cov(t, q) + C2) / (var(t) + var(q) + C2),    C2 = 9e-4

    and the loss is one minus the mean S. S is 1 where both differ by a constant alone, near 0
    where they have nothing in common and near -1 where one is the other turned around; a channel
    that is flat in both has S = 1. There is no term for the means themselves.

    Statistics are along the second last dimension, and no operand is transposed: heads and
    positions that were sliced, or that lie in another order in memory, are read where they are as
    long as channels are neighbours. The variances are biased, each of differences from a mean that
    was found before. Sums are in float32 or better, in a fixed order.

    Args:
        teacher: What the teacher's heads give, `(B, H, N, d)`; float16, bfloat16, float32 or
            float64. A constant to autograd.
        student: Likewise of the student; of two types, both are computed in the wider one.
        weight: How much each position counts, at least 0; broadcasts to `(B, H, N)`, so `(N,)` and
            `(B, 1, N)` fit. Means, variances and covariance are weighted by it, divided by its sum
            over the positions; where that is zero, the loss is NaN. A constant to autograd; None
            for equal weights.

    Returns:
        A 0-d tensor, from 0 to 2; float32 (float64 if an input is float64) whatever the autocast
        state. Without a channel of a head of an image it is zero. A NaN or an infinity makes it
        NaN, and the gradient of its channel. The kernels know no second derivative.

    Raises:
        TypeError: An argument is not a floating tensor.
        ValueError: The shapes or devices differ, `student` has not four dimensions or no position,
            or `weight` does not broadcast.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Choi et al., "MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with
    Encouraging Inter-Head Attention Similarity", AAAI 2025, head-wise structural distillation;
    the weights of positions are those of MaskAQ (ICML 2026).
    """
    if has_torch_function_variadic(teacher, student, weight):
        overriding: Tensor = overridden(structural_similarity_loss, locals())
        return overriding
    op = _op.on(student, teacher, weight)
    if op is None:
        _check(teacher, student, weight)
        return _plain(teacher, student, weight)
    try:
        if teacher.dtype != student.dtype and all(
            x.is_floating_point() for x in (teacher, student)
        ):
            teacher, student = teacher.float(), student.float()
        result: Tensor = op(teacher, student, weight)[0]
    except Exception as error:
        _op.refuse(error, teacher, student, weight)
    return result
