"""The distillation losses on logits."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_number,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference.distillation_loss import distillation_loss as _reference

_ops = torch.ops.synq_fast
_values = {"default": _ops.distillation_loss.default, "triton": _ops.distillation_loss.triton}
_with_gradient = {
    "default": _ops.distillation_loss_with_gradient.default,
    "triton": _ops.distillation_loss_with_gradient.triton,
}


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 20.0,
    alpha: float = 20.0,
    difficulty_threshold: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes the divergence from the teacher and the cross-entropy of the easy samples.

    With p = softmax(teacher / T), q = softmax(student / T) and B samples:

    - `kl = alpha T^2 / B * sum KL(p || q)`,
    - `difficulty = 1 - softmax(teacher)[label]`, without the temperature,
    - `ce = sum(CE(student, label) where difficulty < difficulty_threshold) / B`.

    `kl` is differentiable in both logits (detach the teacher's to distil only), `ce` in the
    student's; `difficulty` has no gradient. An empty batch gives zero losses. A logit of minus
    infinity is a class of probability zero.

    Args:
        student_logits: `(B, C)`; float16, bfloat16, float32 or float64.
        teacher_logits: `(B, C)`, likewise.
        labels: Class indices `(B,)`, int64, in [0, C). The values are checked on the CPU; on a
            GPU, where that would wait for the device, a label out of bounds makes `ce` and the
            sample's difficulty NaN.
        temperature: T, above 0.
        alpha: Factor of the divergence, at least 0.
        difficulty_threshold: Difficulties lie in [0, 1]; above 1 every sample counts as easy.

    Returns:
        `(kl, ce, difficulty)`: two 0-d tensors and one of shape `(B,)`, float32 (float64 if an
        input is float64) whatever the autocast state.

    Raises:
        TypeError: A tensor or a number has another type than said above.
        ValueError: The shapes or devices differ, there is no class or only one, a label is out of
            bounds, or `temperature` or `alpha` is. A binary model with one logit z has the two
            logits [0, z].
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; the selection by
    difficulty is that of SynQ (ICLR 2025).
    """
    if has_torch_function_variadic(student_logits, teacher_logits, labels):
        overriding: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = overridden(
            distillation_loss, locals()
        )
        return overriding
    check_float_tensor("student_logits", student_logits)
    check_float_tensor("teacher_logits", teacher_logits)
    check_dims("student_logits", student_logits, "B, C")
    check_shape("teacher_logits", teacher_logits, student_logits.shape, "of student_logits")
    check_same_device("teacher_logits", teacher_logits, "student_logits", student_logits)
    if student_logits.shape[1] == 0:
        raise ValueError(f"student_logits has no class, its shape is {shape_text(student_logits)}")
    if student_logits.shape[1] == 1:
        raise ValueError(
            f"student_logits has one class, its shape is {shape_text(student_logits)}: the softmax "
            "of one logit is always 1, so both losses would be zero; for a model with one logit z "
            "give two, torch.cat([torch.zeros_like(z), z], 1), of student and teacher"
        )
    _check_labels(labels, student_logits)
    check_number("temperature", temperature, above=0)
    check_number("alpha", alpha, least=0)
    check_number("difficulty_threshold", difficulty_threshold)
    backend = select("distillation_loss", student_logits.device)
    if backend == "reference" or torch.float64 in (student_logits.dtype, teacher_logits.dtype):
        _check_label_values(labels, student_logits.shape[1])
        return _reference(
            student_logits,
            teacher_logits,
            labels,
            temperature=temperature,
            alpha=alpha,
            difficulty_threshold=difficulty_threshold,
        )
    overload = "triton" if backend == "triton" else "default"
    arguments = (student_logits, teacher_logits, labels, temperature, alpha, difficulty_threshold)
    if torch.is_grad_enabled() and (student_logits.requires_grad or teacher_logits.requires_grad):
        kl, ce, difficulty, _, _ = _with_gradient[overload](
            *arguments, student_logits.requires_grad, teacher_logits.requires_grad
        )
        return kl, ce, difficulty
    kl, ce, difficulty = _values[overload](*arguments)
    return kl, ce, difficulty


def _check_labels(labels: object, logits: torch.Tensor) -> None:
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, got {labels.dtype}")
    check_shape("labels", labels, logits.shape[:1], "(B,)")
    check_same_device("labels", labels, "student_logits", logits)


def _check_label_values(labels: torch.Tensor, classes: int) -> None:
    # Elsewhere the values are not at hand: reading them would stop a device or break a graph.
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong) > 0:
        index = int(wrong[0])
        raise ValueError(
            f"labels must be in [0, {classes}), the number of classes, "
            f"got {int(labels[index])} at index {index}"
        )
