"""Fake quantization over a learned grid."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast import reference
from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._checks import check_bits, check_input, check_scale, to_range
from synq_fast.ops._overrides import overridden

_default = torch.ops.synq_fast.fake_quantize_learned.default
_triton = torch.ops.synq_fast.fake_quantize_learned.triton


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
        overriding: torch.Tensor = overridden(fake_quantize_learned, locals())
        return overriding
    check_bits(bits)
    check_input(x, axis)
    scale = to_range("scale", scale, x, axis)
    zero_point = to_range("zero_point", zero_point, x, axis)
    backend = select("fake_quantize_learned", x.device)
    if backend == "reference":
        check_scale(scale)
        return reference.fake_quantize_learned(
            x, scale, zero_point, bits, axis=axis, gradient_scale=gradient_scale
        )
    op = _triton if backend == "triton" else _default
    result: torch.Tensor = op(x, scale, zero_point, bits, axis, gradient_scale)
    return result
