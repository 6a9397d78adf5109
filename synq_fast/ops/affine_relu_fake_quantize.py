"""A folded BatchNorm, a residual, ReLU and fake quantization in one pass."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast import reference
from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._checks import (
    check_bits,
    check_input,
    check_order,
    check_per_channel,
    check_residual,
    check_ste,
    check_upper,
    to_ranges,
)
from synq_fast.ops._overrides import overridden

_default = torch.ops.synq_fast.affine_relu_fake_quantize.default
_triton = torch.ops.synq_fast.affine_relu_fake_quantize.triton


def affine_relu_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    residual: torch.Tensor | None = None,
    upper: float | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """`fake_quantize(relu(x * weight + bias + residual))` in one read of each and one write.

    In evaluation mode a BatchNorm is such an affine map, with `weight = gamma / sqrt(running_var +
    eps)` and `bias = beta - running_mean * weight`. The product and each sum are rounded to float32
    one after the other, so every backend gives the bits of the ops in a row. NaN gives NaN.

    Args:
        x: `(N, C, ...)`; float32, float16 or bfloat16.
        weight: Factor of each channel, `(C,)`, float32 or a half type, on x's device.
        bias: Summand of each channel, like `weight`.
        range_min: Lower bound, as in `fake_quantize`: a number, or a tensor with one element. It
            receives no gradient.
        range_max: Upper bound, like `range_min`.
        bits: Width of the codes, from 2 to 16.
        residual: What is added before the activation, as at the end of a residual block, with the
            shape, type and device of `x`, or None. It is copied if its layout is another than that
            of `x`.
        upper: Clamps the activation from above, 6 for ReLU6; None for a plain ReLU.
        ste: Straight-through gradient of the quantizer, as in `fake_quantize`. The gradient is zero
            where the ReLU receives a value that is at most 0 or at least `upper`, and with
            "clip" where the quantizer clamps. The sums for `weight` and `bias` are accumulated in
            float32 or better in a fixed order.

    Returns:
        The quantized activations, with the shape, type and layout of `x`. There is no second
        derivative.

    Raises:
        TypeError: `x`, a factor, the residual, a range, `bits` or `upper` is of another type than
            said above.
        ValueError: `x` has no dimension 1, `bits` or `ste` is none of the allowed values, `upper`
            is not positive and finite, a factor, the residual or a range has the wrong shape or
            device, or `range_min > range_max` (for tensors on a GPU the values are not read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Batch Normalization (Ioffe and Szegedy, ICML 2015), inference with the statistics
    folded; the quantizer is that of `fake_quantize`.
    """
    if has_torch_function_variadic(x, weight, bias, range_min, range_max, residual):
        overriding: torch.Tensor = overridden(affine_relu_fake_quantize, locals())
        return overriding
    check_bits(bits)
    clip = check_ste(ste)
    check_upper(upper)
    check_input(x, None)
    weight = check_per_channel("weight", weight, x)
    bias = check_per_channel("bias", bias, x)
    check_residual(residual, x)
    low, high = to_ranges(x, range_min, range_max, None)
    backend = select("affine_relu_fake_quantize", x.device)
    if backend == "reference":
        check_order(low, high)
        return reference.affine_relu_fake_quantize(
            x, weight, bias, low, high, bits, residual=residual, upper=upper, ste=ste
        )
    op = _triton if backend == "triton" else _default
    result: torch.Tensor = op(x, weight, bias, residual, low, high, bits, upper, clip)
    return result
