"""The distillation losses on logits."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_number,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference.distillation_loss import distillation_loss as _plain

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _check(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    difficulty_threshold: float,
) -> None:
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


def _check_labels(labels: object, logits: torch.Tensor) -> None:
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, got {labels.dtype}")
    check_shape("labels", labels, logits.shape[:1], "(B,)")
    check_same_device("labels", labels, "student_logits", logits)


def _check_values(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *_: float
) -> None:
    classes = student_logits.shape[1]
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


def _fake(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    difficulty_threshold: float,
) -> Triple:
    _check(student_logits, teacher_logits, labels, temperature, alpha, difficulty_threshold)
    shapes = (), (), student_logits.shape[:1]
    kl, ce, difficulty = (student_logits.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return kl, ce, difficulty


def _fake_with_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    difficulty_threshold: float,
    student_gradient: bool,
    teacher_gradient: bool,
) -> Five:
    kl, ce, difficulty = _fake(
        student_logits, teacher_logits, labels, temperature, alpha, difficulty_threshold
    )
    of_student, of_teacher = (
        student_logits.new_empty((count, *student_logits.shape), dtype=torch.float32)
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
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    difficulty_threshold: float,
) -> Triple:
    return _plain(
        student_logits,
        teacher_logits,
        labels,
        temperature=temperature,
        alpha=alpha,
        difficulty_threshold=difficulty_threshold,
    )


def _reference_with_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    difficulty_threshold: float,
    student_gradient: bool,
    teacher_gradient: bool,
) -> Five:
    student, teacher = student_logits, teacher_logits
    kl, ce, difficulty = _reference(
        student, teacher, labels, temperature, alpha, difficulty_threshold
    )
    # In closed form: below autograd, where a registered op runs, nothing records.
    batch = max(student.shape[0], 1)
    log_p, log_q = (value.float().div(temperature).log_softmax(1) for value in (teacher, student))
    p = log_p.exp()
    of_student = student.new_empty((0, *student.shape), dtype=torch.float32)
    of_teacher = of_student.clone()
    if student_gradient:
        of_label = student.float().softmax(1)
        of_label -= torch.nn.functional.one_hot(labels, student.shape[1])
        of_label = torch.where((difficulty < difficulty_threshold)[:, None], of_label, 0.0)
        of_student = torch.stack([alpha * temperature * (log_q.exp() - p), of_label]) / batch
    if teacher_gradient:
        ratio = torch.where(p == 0, 0.0, log_p - log_q)
        centred = ratio - (p * ratio).sum(1, keepdim=True)
        of_teacher = (alpha * temperature / batch * p * centred)[None]
    return kl, ce, difficulty, of_student, of_teacher


def _reference_backward(
    kl: Tensor | None, ce: Tensor | None, gradients: Tensor, logits: Tensor
) -> Tensor:
    scaled = zip((kl, ce), gradients, strict=False)
    terms = [scale * term for scale, term in scaled if scale is not None]
    return torch.stack(terms).sum(0).to(logits.dtype)


register(
    "distillation_loss_backward",
    "(Tensor? kl, Tensor? ce, Tensor gradients, Tensor logits) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="distillation_loss",
)
# Also the gradients (2, B, C) of both losses in the student's logits and (1, B, C) of the
# divergence in the teacher's, with no row where they were not asked for.
register(
    "distillation_loss_with_gradient",
    "(Tensor student_logits, Tensor teacher_logits, Tensor labels, float temperature, float alpha,"
    " float difficulty_threshold, bool student_gradient, bool teacher_gradient)"
    " -> (Tensor kl, Tensor ce, Tensor difficulty, Tensor of_student, Tensor of_teacher)",
    fake=_fake_with_gradient,
    reference=_reference_with_gradient,
    check_values=_check_values,
    gradients={
        "student_logits": "distillation_loss_backward("
        "grad_kl, grad_ce, of_student, student_logits)",
        "teacher_logits": "distillation_loss_backward(grad_kl, None, of_teacher, teacher_logits)",
    },
)
_op = register(
    "distillation_loss",
    "(Tensor student_logits, Tensor teacher_logits, Tensor labels, float temperature, float alpha,"
    " float difficulty_threshold) -> (Tensor kl, Tensor ce, Tensor difficulty)",
    fake=_fake,
    reference=_reference,
    check_values=_check_values,
    recorded="distillation_loss_with_gradient(student_logits, teacher_logits, labels, temperature,"
    " alpha, difficulty_threshold, needs(student_logits), needs(teacher_logits))",
)


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
        overriding: Triple = overridden(distillation_loss, locals())
        return overriding
    arguments = (student_logits, teacher_logits, labels, temperature, alpha, difficulty_threshold)
    op = _op.on(student_logits, teacher_logits)
    if op is None or bool in (type(temperature), type(alpha), type(difficulty_threshold)):
        _op.check(*arguments)
        return _reference(*arguments)
    try:
        kl, ce, difficulty = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return kl, ce, difficulty
