"""The soft rounding of weights, and its regulariser."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import check_bits, check_gradient, check_range, check_scale, widened
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import (
    check_axis,
    check_number,
    check_same_device,
    check_shape,
)
from synq_fast.reference._affine import range_shape
from synq_fast.reference.soft_round import soft_round as _plain
from synq_fast.reference.soft_round import soft_round_gradients

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
MAX_BITS = 8


def _check_weight(v: object, axis: object) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"v must be a torch.Tensor, got {type(v).__name__}")
    if v.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"v must be float32 or float64, got {v.dtype}; convert it with v.float()")
    check_axis(axis, "v", v)


def _check(
    v: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    exponent: Tensor,
    bits: int,
    axis: int | None,
) -> None:
    check_bits(bits)
    if bits > MAX_BITS:
        raise ValueError(f"bits must be from 2 to {MAX_BITS}, which int8 holds, got {bits}")
    _check_weight(v, axis)
    if not isinstance(base, Tensor):
        raise TypeError(f"base must be a torch.Tensor, got {type(base).__name__}")
    if base.dtype != torch.int8:
        raise TypeError(f"base must be int8, got {base.dtype}; convert it with base.to(torch.int8)")
    check_shape("base", base, v.shape, "that of v")
    check_same_device("base", base, "v", v)
    wide = v.dtype == torch.float64
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        check_same_device(name, value, "v", v)
        check_range(name, value.float() if wide else value, v, axis)
    check_same_device("exponent", exponent, "v", v)
    if exponent.numel() != 1 or not exponent.is_floating_point():
        raise ValueError(
            "exponent must be a number or a 0-d float32 tensor, "
            f"got shape {tuple(exponent.shape)}, {exponent.dtype}"
        )
    if exponent.dtype != torch.float32 and not wide:
        raise TypeError(f"exponent must be float32, got {exponent.dtype}")


def _fake(
    v: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    exponent: Tensor,
    bits: int,
    axis: int | None,
) -> Pair:
    _check(v, base, scale, zero_point, exponent, bits, axis)
    return torch.empty_like(v), v.new_empty(())


def _fake_backward(
    grad_w: Tensor | None,
    grad_penalty: Tensor | None,
    v: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    exponent: Tensor,
    bits: int,
    axis: int | None,
) -> Pair:
    _check(v, base, scale, zero_point, exponent, bits, axis)
    if grad_w is not None:
        check_gradient(grad_w, v)
    if grad_penalty is not None:
        check_shape("grad_penalty", grad_penalty, (), "()")
    return torch.empty_like(v), scale.new_empty(scale.shape)


def _reference(
    v: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    exponent: Tensor,
    bits: int,
    axis: int | None,
) -> Pair:
    w, penalty = _plain(v, base, scale, zero_point, bits, exponent, axis=axis)
    return like(w, v), penalty


def _reference_backward(
    grad_w: Tensor | None,
    grad_penalty: Tensor | None,
    v: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    exponent: Tensor,
    bits: int,
    axis: int | None,
) -> Pair:
    of_v, of_scale = soft_round_gradients(
        grad_w, grad_penalty, v, base, scale, zero_point, bits, exponent.reshape(()), axis
    )
    return like(of_v, v), of_scale


register(
    "soft_round_backward",
    "(Tensor? grad_w, Tensor? grad_penalty, Tensor v, Tensor base, Tensor scale, "
    "Tensor zero_point, Tensor exponent, int bits, int? axis)"
    " -> (Tensor of_v, Tensor of_scale)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad_w, grad_penalty, v, base, scale, *_: check_scale(scale),
    once="soft_round",
)
_op = register(
    "soft_round",
    "(Tensor v, Tensor base, Tensor scale, Tensor zero_point, Tensor exponent, int bits, "
    "int? axis) -> (Tensor w, Tensor penalty)",
    fake=_fake,
    reference=_reference,
    check_values=lambda v, base, scale, *_: check_scale(scale),
    gradients={
        "v, scale": "soft_round_backward("
        "grad_w, grad_penalty, v, base, scale, zero_point, exponent, bits, axis)"
    },
)


def _as_tensor(name: str, value: object, v: Tensor, shape: tuple[int, ...]) -> Tensor:
    if isinstance(value, Tensor):
        return widened(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} must be a number or a float32 tensor, got {value!r} ({type(value).__name__})"
        )
    # Filled on the device: a copy from the host would synchronise it.
    return torch.full(shape, value, dtype=v.dtype, device=v.device)


def soft_round(
    v: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    exponent: torch.Tensor | float,
    *,
    axis: int | None = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds weights down by a trained share of a step, and says how undecided the shares are.

    In float32:

        h = clamp(1.2 * sigmoid(v) - 0.1, 0, 1)
        c = clamp(base + h, -2^(bits - 1), 2^(bits - 1) - 1)
        w = (c + round(zero_point)) / scale
        penalty = sum(1 - |2 h - 1| ** exponent)

    The penalty is 0 where every h is 0 or 1, so that its weight in a loss decides between both
    neighbouring levels; a falling exponent does so ever more strictly. Gradients are those of the
    formulas, for `v` and for `scale`; where h or c is clamped they are zero, and so is that of the
    penalty at h = 1/2. Everything else is constant. One pass over memory gives both, and nothing is
    saved but the arguments. Sums are accumulated in float32 or better in a fixed order. NaN in `v`
    stays NaN, in both results and in its gradient.

    Backends round sigmoids and powers differently: a value is within 1e-6 of its step and of
    itself, a share's part of the penalty within 5e-7 times the exponent.

    Args:
        v: The trained variable, any shape; float32, or float64, which runs on the reference. Dense
            memory in any order, such as channels_last, is read where it lies.
        base: Codes of the lower levels, such as `floor(scale * w - zero_point)`, of the shape of
            `v`; int8. Fastest where it lies in memory as `v` does.
        scale: Steps per unit, positive: `(C,)`, where C is the size of the dimension `axis`, or one
            number without an axis; float32, or a half type, whose gradient is rounded to it.
        zero_point: The code that stands for zero, with its sign turned; rounded half to even. Like
            `scale`.
        bits: Width of the codes, from 2 to 8.
        exponent: Of the penalty, at least 1: a number, or a 0-d float32 tensor on v's device,
            which a CUDA graph reads anew at every replay.
        axis: The dimension that has one grid per index; None for one grid in all.

    Returns:
        `(w, penalty)`: the weights, float32, with the shape and layout of `v`; a 0-d tensor. There
        is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: `bits` is not allowed, or a parameter has the wrong length or device, or a scale
            is not positive (for tensors on a GPU the values are not read), or the number given as
            the exponent is below 1.
        IndexError: `axis` is not a dimension of `v`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: AdaRound (Nagel et al., ICML 2020, equations 22 to 24); Genie (Jeon et al., CVPR 2023),
    whose quantizer trains the scale as well.
    """
    if has_torch_function_variadic(v, base, scale, zero_point, exponent):
        overriding: Pair = overridden(soft_round, locals())
        return overriding
    _check_weight(v, axis)
    shape = range_shape(v, axis, None)
    scale = _as_tensor("scale", scale, v, shape)
    zero_point = _as_tensor("zero_point", zero_point, v, shape)
    if not isinstance(exponent, Tensor):
        check_number("exponent", exponent, least=1)
    exponent = _as_tensor("exponent", exponent, v, ())
    arguments = (v, base, scale, zero_point, exponent, bits, axis)
    op = _op.on(v)
    if op is None:
        _op.check(*arguments)
        return _plain(v, base, scale, zero_point, bits, exponent, axis=axis)
    try:
        w, penalty = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return w, penalty
