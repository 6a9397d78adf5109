"""Fake quantization over a learned grid."""

from typing import Any

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_range,
    check_scale,
    to_range,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import along_axis, as_range
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned as _plain
from synq_fast.reference.fake_quantize_learned import learned_gradients

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Tensor:
    check_bits(bits)
    check_input(x, axis)
    check_range("scale", scale, x, axis)
    check_range("zero_point", zero_point, x, axis)
    return torch.empty_like(x)


def _fake_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, *arguments: Any
) -> Triple:
    result = _fake(x, scale, zero_point, *arguments)
    check_gradient(grad, x)
    return result, scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)


def _reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Tensor:
    return like(_plain(x, scale, zero_point, bits, axis=axis), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Triple:
    pair = (as_range(value, x, axis) for value in (scale, zero_point))
    factor, offset = (along_axis(value, x, axis) for value in pair)
    of_x, of_scale, of_zero = learned_gradients(grad, x, factor, offset, bits, gradient_scale)
    return like(of_x, x), of_scale.reshape(scale.shape), of_zero.reshape(zero_point.shape)


register(
    "fake_quantize_learned_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int bits, int? axis, "
    "float gradient_scale) -> (Tensor of_x, Tensor of_scale, Tensor of_zero_point)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, scale, *_: check_scale(scale),
    once="fake_quantize_learned",
)
_op = register(
    "fake_quantize_learned",
    "(Tensor x, Tensor scale, Tensor zero_point, int bits, int? axis, float gradient_scale)"
    " -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, scale, *_: check_scale(scale),
    gradients={
        "x, scale, zero_point": "fake_quantize_learned_backward("
        "grad, x, scale, zero_point, bits, axis, gradient_scale)"
    },
    triton_arguments=5,
)


def fake_quantize_learned(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Rounds `x` to the `2^bits` levels of a grid whose scale and zero point are trained.

    In float32, each operation rounded on its own and halves rounded to even:

        z = round(zero_point)
        q = clamp(round(scale * x - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / scale

    The rounding of the zero point, like that of the codes, passes its gradient straight through.
    With g the gradient of y, and "clipped" where the clamp changes the code:

        where        x    scale (summed over a channel)   zero_point (summed over a channel)
        in range     g    g * (x - y) / scale             0
        clipped      0    g * -y / scale                  g / scale

    These are the gradients of LSQ and LSQ+ for a scale in steps per unit, the reciprocal of their
    step size. Sums are accumulated in float32 or better in a fixed order, so that they repeat bit
    for bit; values and the gradient of `x` are the same bits on every backend. A NaN in `x` counts
    as in range: it gives NaN, lets the gradient of `x` through and makes that of its scale NaN. A
    NaN scale or zero point makes the values of its channel NaN.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        scale: Steps per unit of `x`, positive: a number, or a tensor on x's device with one
            element, or `(C,)` with `axis`, where C is the size of that dimension; float32, or a
            half type, whose gradient is rounded to it.
        zero_point: The code that stands for zero, with its sign turned; may be fractional. Like
            `scale`.
        bits: Width k of the codes, from 2 to 16.
        axis: The dimension that has one grid per index; None for one grid in all.
        gradient_scale: Multiplies the gradients of scale and zero point. LSQ uses
            `1 / sqrt(N * Qp)` for the gradient of its step size, with N the elements that share it
            and Qp the highest code.

    Returns:
        The quantized values, with the shape, type and layout of `x`. There is no second derivative.

    Raises:
        TypeError: `x`, `scale`, `zero_point`, `bits` or `axis` is of another type than said above.
        ValueError: `bits` is not allowed, or a parameter has the wrong length or device, or a scale
            is not positive (for tensors on a GPU the values are not read).
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Learned Step Size Quantization (Esser et al., ICLR 2020, equation 3); LSQ+ (Bhalgat et
    al., CVPR Workshops 2020), with the offset inside the rounding.
    """
    if has_torch_function_variadic(x, scale, zero_point):
        overriding: Tensor = overridden(fake_quantize_learned, locals())
        return overriding
    scale = to_range("scale", scale, x, axis)
    zero_point = to_range("zero_point", zero_point, x, axis)
    arguments = (x, scale, zero_point, bits, axis, gradient_scale)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, scale, zero_point, bits, axis=axis, gradient_scale=gradient_scale)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
