"""Distillation losses on logits: values, gradients of both, and the backward pass that adds them.

One program per row; a second kernel sums the rows' losses in a fixed order. With
t' = (t - max t) / T, s' likewise, Zt = sum exp(t') and Zq = sum exp(s'):

    KL = sum exp(t') (t' - s') / Zt - log(Zt / Zq)
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._layout import finished, on_device_of, output_like, power_of_two

BLOCK = 1024
ROWS = 512


@triton.jit
def load_logits(pointer, offsets, classes):
    """Returns part of a row in float32; what lies beyond it is a class of probability zero."""
    return tl.load(pointer + offsets, mask=offsets < classes, other=float("-inf")).to(tl.float32)


@triton.jit
def rows_kernel(
    student_ptr, teacher_ptr, labels_ptr, difficulty_ptr, losses_ptr,
    student_gradient_ptr, teacher_gradient_ptr,
    batch, classes, inverse_temperature, threshold, kl_scale, ce_scale,
    STUDENT: tl.constexpr, TEACHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Losses of one row, (2, batch), and the gradients asked for."""
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * classes
    teacher_ptr += row * classes
    place = tl.arange(0, BLOCK)

    student_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    teacher_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    start = row * 0  # the interpreter cannot run `range` over tensors with every NumPy
    while start < classes:
        student_max = tl.maximum(student_max, load_logits(student_ptr, start + place, classes))
        teacher_max = tl.maximum(teacher_max, load_logits(teacher_ptr, start + place, classes))
        start += BLOCK
    student_max = tl.max(student_max)
    teacher_max = tl.max(teacher_max)

    teacher_sum = tl.zeros((BLOCK,), tl.float32)
    teacher_plain = tl.zeros((BLOCK,), tl.float32)
    student_sum = tl.zeros((BLOCK,), tl.float32)
    student_plain = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    start = row * 0
    while start < classes:
        t = load_logits(teacher_ptr, start + place, classes) - teacher_max
        s = load_logits(student_ptr, start + place, classes) - student_max
        p = tl.exp(t * inverse_temperature)
        teacher_sum += p
        teacher_plain += tl.exp(t)
        student_sum += tl.exp(s * inverse_temperature)
        student_plain += tl.exp(s)
        # An absent class adds nothing, however unlikely the student finds it.
        weighted += tl.where(p == 0.0, 0.0, p * ((t - s) * inverse_temperature))
        start += BLOCK
    teacher_sum = tl.sum(teacher_sum)
    teacher_plain = tl.sum(teacher_plain)
    student_sum = tl.sum(student_sum)
    student_plain = tl.sum(student_plain)
    weighted = tl.sum(weighted) / teacher_sum

    label = tl.load(labels_ptr + row)
    known = (label >= 0) & (label < classes)
    own_teacher = tl.load(teacher_ptr + label, mask=known, other=float("nan")).to(tl.float32)
    own_student = tl.load(student_ptr + label, mask=known, other=float("nan")).to(tl.float32)
    difficulty = 1.0 - tl.exp(own_teacher - teacher_max) / teacher_plain
    easy = difficulty < threshold
    cross_entropy = tl.log(student_plain) - (own_student - student_max)
    tl.store(difficulty_ptr + row, difficulty)
    tl.store(losses_ptr + row, weighted - tl.log(teacher_sum / student_sum))
    tl.store(losses_ptr + batch + row, tl.where(easy | (known == 0), cross_entropy, 0.0))

    if STUDENT or TEACHER:
        start = row * 0
        while start < classes:
            column = start + place
            inside = column < classes
            t = load_logits(teacher_ptr, column, classes) - teacher_max
            s = load_logits(student_ptr, column, classes) - student_max
            e = tl.exp(t * inverse_temperature)
            p = e * (kl_scale / teacher_sum)
            if STUDENT:
                q = tl.exp(s * inverse_temperature) * (kl_scale / student_sum)
                tl.store(student_gradient_ptr + row * classes + column, q - p, mask=inside)
                own = tl.exp(s) * (ce_scale / student_plain)
                own = tl.where(column == label, own - ce_scale, own)
                tl.store(
                    student_gradient_ptr + (batch + row) * classes + column,
                    tl.where(easy, own, 0.0),
                    mask=inside,
                )
            if TEACHER:
                ratio = tl.where(e == 0.0, 0.0, (t - s) * inverse_temperature)
                tl.store(
                    teacher_gradient_ptr + row * classes + column,
                    p * (ratio - weighted),
                    mask=inside,
                )
            start += BLOCK


@triton.jit
def total_kernel(losses_ptr, kl_ptr, ce_ptr, batch, kl_factor, ce_factor, ROWS: tl.constexpr):
    """Sums the losses of all rows, in float64 and always in the same order."""
    kl = tl.zeros((ROWS,), tl.float64)
    ce = tl.zeros((ROWS,), tl.float64)
    start = tl.program_id(0).to(tl.int64) * 0
    while start < batch:
        row = start + tl.arange(0, ROWS)
        kl += tl.load(losses_ptr + row, mask=row < batch, other=0.0).to(tl.float64)
        ce += tl.load(losses_ptr + batch + row, mask=row < batch, other=0.0).to(tl.float64)
        start += ROWS
    tl.store(kl_ptr, (tl.sum(kl) * kl_factor).to(tl.float32))
    tl.store(ce_ptr, (tl.sum(ce) * ce_factor).to(tl.float32))


@triton.jit
def combine_kernel(
    kl_ptr, ce_ptr, gradients_ptr, result_ptr, elements,
    KL: tl.constexpr, CE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the terms' gradients, each times the gradient that came in for its loss."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < elements
    result = tl.zeros((BLOCK,), tl.float32)
    if KL:
        result += tl.load(kl_ptr) * tl.load(gradients_ptr + offsets, mask=mask)
    if CE:
        result += tl.load(ce_ptr) * tl.load(gradients_ptr + elements + offsets, mask=mask)
    tl.store(result_ptr + offsets, result.to(result_ptr.dtype.element_ty), mask=mask)


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `(kl, ce, difficulty)`."""
    results = distillation_loss_with_gradient(
        student, teacher, labels, temperature, alpha, threshold, False, False
    )
    return results[0], results[1], results[2]


def distillation_loss_with_gradient(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
    threshold: float,
    student_gradient: bool,
    teacher_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns also the gradients (2, B, C) in the student's logits and (1, B, C) in the teacher's.

    Those not asked for have no row.
    """
    batch, classes = student.shape

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float32, device=student.device)

    kl, ce, difficulty = empty(), empty(), empty(batch)
    of_student = empty(2 * student_gradient, batch, classes)
    of_teacher = empty(1 * teacher_gradient, batch, classes)
    if batch == 0:
        return kl.zero_(), ce.zero_(), difficulty, of_student, of_teacher
    losses = empty(2, batch)
    block = min(power_of_two(classes), BLOCK)
    with on_device_of(student):
        rows_kernel[(batch,)](
            student.contiguous(), teacher.contiguous(), labels.contiguous(), difficulty, losses,
            of_student, of_teacher, batch, classes,
            1 / temperature, threshold, alpha * temperature / batch, 1 / batch,
            STUDENT=student_gradient, TEACHER=teacher_gradient, BLOCK=block,
            num_warps=max(1, min(block // 256, 4)),
        )  # fmt: skip
        total_kernel[(1,)](
            losses, kl, ce, batch, alpha * temperature**2 / batch, 1 / batch,
            ROWS=min(power_of_two(batch), ROWS), num_warps=4,
        )  # fmt: skip
    return kl, ce, difficulty, of_student, of_teacher


def distillation_loss_backward(
    kl: torch.Tensor | None,
    ce: torch.Tensor | None,
    gradients: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    """Returns `kl * gradients[0] + ce * gradients[1]` in the type of `logits`."""
    result = output_like(logits.new_empty(logits.shape))
    elements = logits.numel()
    if elements > 0:
        nothing = gradients  # a pointer that is not read
        block, warps = block_shape("combine_kernel", logits.dtype)
        with on_device_of(logits):
            combine_kernel[(triton.cdiv(elements, block),)](
                nothing if kl is None else kl.float(), nothing if ce is None else ce.float(),
                gradients.contiguous(), result, elements,
                KL=kl is not None, CE=ce is not None, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return finished(result, logits)
