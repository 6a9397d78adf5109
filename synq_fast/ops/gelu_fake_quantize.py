"""GELU and fake quantization over a trained grid, in one pass."""

from typing import Literal

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._activation_fake_quantize import GELU, compute
from synq_fast.ops._overrides import overridden
from synq_fast.reference.gelu_fake_quantize import gelu_fake_quantize as _plain


def gelu_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    gradient_scale: float = 1.0,
    grid: Literal["uniform", "minifloat"] = "uniform",
) -> torch.Tensor:
    """Rounds GELU's values to the `2^bits` levels of a grid whose scale and zero point are trained.

    In float32, with P and p the distribution and the density of a standard normal variable:

        a = x * P(x)
        z = round(zero_point)
        q = clamp(round(scale * a - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / scale

    With `grid="minifloat"` q is instead the small float next to `scale * a - z`, as in
    `fake_quantize_minifloat`: `y` has the bits that op gives for `a` over a range whose scale and
    zero point these are.

    `a` is never stored: where a gradient is wanted, `x` is saved and `a` is computed again. With g
    the gradient of y, that of `x` is `g * (P(x) + x * p(x))` where the clamp changes no code and
    zero elsewhere; those of scale and zero point are those of `fake_quantize_learned` for `a`, on
    small floats with levels for codes. One pass over memory gives each direction. Sums are
    accumulated in float32 or better in a fixed order.

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
        bits: Width of the codes, from 2 to 16; with `grid="minifloat"` from 3 to 8.
        gradient_scale: Multiplies the gradients of scale and zero point, as in
            `fake_quantize_learned`.
        grid: Levels: "uniform", equal steps, or "minifloat", small floats.

    Returns:
        The quantized values, with the shape, type and layout of `x`. There is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: `bits` or `grid` is not allowed, or a parameter has more than one element or
            lies on another device, or the scale is not positive (for tensors on a GPU the values
            are not read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Gaussian Error Linear Units (Hendrycks and Gimpel, 2016); for the grids, those of
    `fake_quantize_learned` and `fake_quantize_minifloat`.
    """
    if has_torch_function_variadic(x, scale, zero_point):
        overriding: torch.Tensor = overridden(gelu_fake_quantize, locals())
        return overriding
    return compute(_plain, GELU, x, scale, zero_point, bits, gradient_scale, grid)
