"""The distillation losses: values alone, values with their gradients, and the backward pass."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._checks import DTYPES
from synq_fast.ops._op import Op, differentiable_once

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _check(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> None:
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if logits.dtype not in DTYPES:
            raise TypeError(f"{name} must be float32, float16 or bfloat16, got {logits.dtype}")
    if student.ndim != 2 or student.shape[1] == 0:
        raise ValueError(
            "student_logits must have shape (B, C) with at least one class, "
            f"got {tuple(student.shape)}"
        )
    if teacher.shape != student.shape or labels.shape != student.shape[:1]:
        raise ValueError(
            f"teacher_logits must have shape (B, C) = {tuple(student.shape)} and labels (B,), "
            f"got {tuple(teacher.shape)} and {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, got {labels.dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def _fake(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
) -> Triple:
    _check(student, teacher, labels, temperature)
    shapes = (), (), student.shape[:1]
    kl, ce, difficulty = (student.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return kl, ce, difficulty


def _fake_with_gradient(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
    student_gradient: bool,
    teacher_gradient: bool,
) -> Five:
    kl, ce, difficulty = _fake(student, teacher, labels, temperature, alpha, threshold)
    of_student, of_teacher = (
        student.new_empty((count, *student.shape), dtype=torch.float32)
        for count in (2 * student_gradient, 1 * teacher_gradient)
    )
    return kl, ce, difficulty, of_student, of_teacher


def _fake_backward(
    kl: Tensor | None, ce: Tensor | None, gradients: Tensor, logits: Tensor
) -> Tensor:
    if gradients.shape[1:] != logits.shape or gradients.shape[0] not in (1, 2):
        raise ValueError(
            f"gradients must have shape (terms, B, C) with (B, C) = {tuple(logits.shape)}, "
            f"got {tuple(gradients.shape)}"
        )
    if kl is None and ce is None:
        raise ValueError("neither kl nor ce has a gradient")
    return logits.new_empty(logits.shape)


def _reference(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
) -> Triple:
    _check(student, teacher, labels, temperature)
    return reference.distillation_loss(
        student,
        teacher,
        labels,
        temperature=temperature,
        alpha=alpha,
        difficulty_threshold=threshold,
    )


def _reference_with_gradient(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
    student_gradient: bool,
    teacher_gradient: bool,
) -> Five:
    kl, ce, difficulty = _reference(student, teacher, labels, temperature, alpha, threshold)
    # In closed form: below autograd, where a registered op runs, nothing records.
    batch = max(student.shape[0], 1)
    log_p, log_q = (value.float().div(temperature).log_softmax(1) for value in (teacher, student))
    p = log_p.exp()
    of_student = student.new_empty((0, *student.shape), dtype=torch.float32)
    of_teacher = of_student.clone()
    if student_gradient:
        of_label = student.float().softmax(1)
        of_label -= torch.nn.functional.one_hot(labels, student.shape[1])
        of_label = torch.where((difficulty < threshold)[:, None], of_label, 0.0)
        of_student = torch.stack([alpha * temperature * (log_q.exp() - p), of_label]) / batch
    if teacher_gradient:
        ratio = torch.where(p == 0, 0.0, log_p - log_q)
        centred = ratio - (p * ratio).sum(1, keepdim=True)
        of_teacher = (alpha * temperature / batch * p * centred)[None]
    return kl, ce, difficulty, of_student, of_teacher


def _reference_backward(
    kl: Tensor | None, ce: Tensor | None, gradients: Tensor, logits: Tensor
) -> Tensor:
    _fake_backward(kl, ce, gradients, logits)
    scaled = zip((kl, ce), gradients, strict=False)
    terms = [scale * term for scale, term in scaled if scale is not None]
    return torch.stack(terms).sum(0).to(logits.dtype)


def _combine(
    suffix: str, kl: Tensor | None, ce: Tensor | None, saved: tuple[Tensor, ...], needs: Any
) -> tuple[Tensor | None, Tensor | None]:
    student, teacher, of_student, of_teacher = saved
    op = getattr(torch.ops.synq_fast.distillation_loss_backward, suffix)
    first = second = None
    if needs[0] and not (kl is None and ce is None):
        first = op(kl, ce, of_student, student)
    if needs[1] and kl is not None:
        second = op(kl, None, of_teacher, teacher)
    return first, second


def _autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:3])
        ctx.constants = inputs[3:]

    def backward(ctx: Any, kl: Tensor | None, ce: Tensor | None, _: Any) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[:2]
        op = getattr(torch.ops.synq_fast.distillation_loss_with_gradient, suffix)
        inputs = [value.detach() for value in ctx.saved_tensors]
        *_, of_student, of_teacher = op(*inputs, *ctx.constants, *needs)
        saved = (*ctx.saved_tensors[:2], of_student, of_teacher)
        return *_combine(suffix, kl, ce, saved, needs), *(None,) * 4

    return setup, backward


def _autograd_with_gradient(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Five) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2], *output[3:])

    def backward(ctx: Any, kl: Tensor | None, ce: Tensor | None, *_: Any) -> tuple[Any, ...]:
        gradients = _combine(suffix, kl, ce, ctx.saved_tensors, ctx.needs_input_grad)
        return *gradients, *(None,) * 6

    return setup, backward


_INPUTS = (
    "Tensor student_logits, Tensor teacher_logits, Tensor labels, float temperature, float alpha, "
    "float difficulty_threshold"
)

OPS = {
    "distillation_loss": Op(
        f"({_INPUTS}) -> (Tensor, Tensor, Tensor)",
        _fake,
        _reference,
        _autograd,
        triton_arguments=6,
    ),
    # Also the gradients (2, B, C) of both losses in the student's logits and (1, B, C) of the
    # divergence in the teacher's, with no row where they were not asked for.
    "distillation_loss_with_gradient": Op(
        f"({_INPUTS}, bool student_gradient, bool teacher_gradient)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_with_gradient,
        _reference_with_gradient,
        _autograd_with_gradient,
        triton_arguments=8,
    ),
    "distillation_loss_backward": Op(
        "(Tensor? kl, Tensor? ce, Tensor gradients, Tensor logits) -> Tensor",
        _fake_backward,
        _reference_backward,
        differentiable_once("distillation_loss"),
        triton_arguments=4,
    ),
}
