"""SiLU and fake quantization over a trained grid, in one pass."""

from typing import Literal

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._activation_fake_quantize import SILU, compute
from synq_fast.ops._overrides import overridden
from synq_fast.reference.silu_fake_quantize import silu_fake_quantize as _plain


def silu_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    gradient_scale: float = 1.0,
    grid: Literal["uniform", "minifloat"] = "uniform",
) -> torch.Tensor:
    """Rounds SiLU's values to the `2^bits` levels of a grid that is trained.

    In float32:

        s = 1 / (1 + exp(-x))
        a = x * s
        z = round(zero_point)
        q = clamp(round(scale * a - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / scale

    or with `grid="minifloat"` on small floats, as in `gelu_fake_quantize`, which says more about
    the grids, their gradients and what is stored.

    With g the gradient of y, that of `x` is `g * (s + x * s * (1 - s))` where the clamp changes no
    code and zero elsewhere. Backends round `a` differently, as they do a GELU's. As torch's SiLU
    does, minus infinity gives NaN; NaN counts as in range and is passed on.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        scale: Steps per unit of `a`, positive: a number, or a tensor with one element on x's
            device; float32, or a half type, whose gradient is rounded to it.
        zero_point: The code that stands for zero, with its sign turned; may be fractional. SiLU is
            never below -0.28. Like `scale`.
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

    Source: Sigmoid-Weighted Linear Units (Elfwing et al., 2017), swish; for the grids, those of
    `fake_quantize_learned` and `fake_quantize_minifloat`.
    """
    if has_torch_function_variadic(x, scale, zero_point):
        overriding: torch.Tensor = overridden(silu_fake_quantize, locals())
        return overriding
    return compute(_plain, SILU, x, scale, zero_point, bits, gradient_scale, grid)
