"""GELU and fake quantization over a learned grid, in one pass."""

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
from synq_fast.reference._affine import as_range
from synq_fast.reference.gelu_fake_quantize import gelu_fake_quantize as _plain
from synq_fast.reference.gelu_fake_quantize import gelu_fake_quantize_gradients

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, gradient_scale: float) -> Tensor:
    check_bits(bits)
    check_input(x, None)
    check_range("scale", scale, x, None)
    check_range("zero_point", zero_point, x, None)
    return torch.empty_like(x)


def _fake_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, *arguments: Any
) -> Triple:
    result = _fake(x, scale, zero_point, *arguments)
    check_gradient(grad, x)
    return result, scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)


def _reference(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, gradient_scale: float
) -> Tensor:
    return like(_plain(x, scale, zero_point, bits), x)


def _reference_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, gradient_scale: float
) -> Triple:
    factor, offset = (as_range(value, x, None) for value in (scale, zero_point))
    of_x, of_scale, of_zero = gelu_fake_quantize_gradients(
        grad, x, factor, offset, bits, gradient_scale
    )
    return like(of_x, x), of_scale.reshape(scale.shape), of_zero.reshape(zero_point.shape)


register(
    "gelu_fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int bits, float gradient_scale)"
    " -> (Tensor of_x, Tensor of_scale, Tensor of_zero_point)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, scale, *_: check_scale(scale),
    once="gelu_fake_quantize",
)
_op = register(
    "gelu_fake_quantize",
    "(Tensor x, Tensor scale, Tensor zero_point, int bits, float gradient_scale) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, scale, *_: check_scale(scale),
    gradients={
        "x, scale, zero_point": "gelu_fake_quantize_backward("
        "grad, x, scale, zero_point, bits, gradient_scale)"
    },
    triton_arguments=4,
)


def gelu_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Rounds GELU's values to the `2^bits` levels of a grid whose scale and zero point are trained.

    In float32, with P and p the distribution and the density of a standard normal variable:

        a = x * P(x)
        z = round(zero_point)
        q = clamp(round(scale * a - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / scale

    `a` is never stored: where a gradient is wanted, `x` is saved and `a` is computed again. With g
    the gradient of y, that of `x` is `g * (P(x) + x * p(x))` where the clamp changes no code and
    zero elsewhere; those of scale and zero point are those of `fake_quantize_learned` for `a`. One
    pass over memory gives each direction. Sums are accumulated in float32 or better in a fixed
    order.

    The quantizer is exact, and backends round `a` differently, by a few units in the last place of
    `x`: where `scale * a - z` lies that close to the middle between two codes, one backend may
    choose the one and another the other. As torch's GELU does, minus infinity gives NaN; NaN counts
    as in range and is passed on.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        scale: Steps per unit of `a`, positive: a number, or a tensor with one element on x's
            device; float32, or a half type, whose gradient is rounded to it.
        zero_point: The code that stands for zero, with its sign turned; may be fractional. GELU is
            never below -0.17: at 4 bits a range up to 2.5 spends one code on what is negative. Like
            `scale`.
        bits: Width of the codes, from 2 to 16.
        gradient_scale: Multiplies the gradients of scale and zero point, as in
            `fake_quantize_learned`.

    Returns:
        The quantized values, with the shape, type and layout of `x`. There is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: `bits` is not allowed, or a parameter has more than one element or lies on
            another device, or the scale is not positive (for tensors on a GPU the values are not
            read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Gaussian Error Linear Units (Hendrycks and Gimpel, 2016); for the grid, those of
    `fake_quantize_learned`.
    """
    if has_torch_function_variadic(x, scale, zero_point):
        overriding: Tensor = overridden(gelu_fake_quantize, locals())
        return overriding
    scale = to_range("scale", scale, x, None)
    zero_point = to_range("zero_point", zero_point, x, None)
    arguments = (x, scale, zero_point, bits, gradient_scale)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, scale, zero_point, bits, gradient_scale=gradient_scale)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
