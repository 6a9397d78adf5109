"""The quantizer's arithmetic for Triton, operation for operation that of `synq_fast.reference`.

Kernels that use it are launched with `enable_fp_fusion=False`: a fused product and sum would round
once instead of twice. Division is `tl.div_rn`, since `/` is approximate.
"""

import triton
import triton.language as tl


@triton.jit
def round_half_even(value):
    """Rounds any float32, as the zero point needs: a range may lie millions of steps from zero."""
    magic = tl.where(value < 0.0, -8388608.0, 8388608.0)
    # From 2^23 on every float is an integer; NaN compares false and passes through.
    return tl.where(tl.abs(value) < 8388608.0, (value + magic) - magic, value)


@triton.jit
def make_affine(range_min, range_max, levels, half):
    """Returns scale and zero point of a range of `levels` steps, whose first code is -`half`.

    Of equal steps they are 2^bits - 1 and 2^(bits - 1).
    """
    # Half the width: the whole of it may overflow.
    width = range_max * 0.5 - range_min * 0.5
    width = tl.maximum(width, 5e-9, propagate_nan=tl.PropagateNan.ALL)
    scale = tl.div_rn(tl.full(width.shape, 1.0, tl.float32), width) * (levels * 0.5)
    return scale, round_half_even(scale * range_min) + half


@triton.jit
def learned_grid(scale, zero_point):
    """Returns a learned pair with its zero point rounded; zero has no sign."""
    return scale, round_half_even(zero_point) + 0.0


@triton.jit
def symmetric_range(range_min, range_max):
    """Returns the range around zero that spans the given one; its zero point is exactly 0."""
    largest = tl.maximum(-range_min, range_max, propagate_nan=tl.PropagateNan.ALL)
    largest = tl.maximum(largest, 5e-9, propagate_nan=tl.PropagateNan.ALL)
    return -(largest * 1.00000095367431640625), largest


@triton.jit
def relu(x, upper):
    """Returns the activation; NaN for `upper` means no upper bound, and NaN values stay."""
    value = tl.where(x < 0.0, 0.0, x)
    return tl.where(value > upper, upper, value)


@triton.jit
def relu_gradient(gradient, x, upper):
    """Returns the gradient where the activation passes it, else zero."""
    return tl.where((x <= 0.0) | (x >= upper), 0.0, gradient)


@triton.jit
def clipped_gradient(gradient, x, scale, zero_point, half):
    """Returns the gradient where `x` lies within the grid; NaN lies on neither side."""
    # One step beyond each end tells what was clipped.
    code = quantize(x, scale, zero_point, -half - 1.0, half)
    return tl.where((code < -half) | (code > half - 1.0), 0.0, gradient)


@triton.jit
def quantize(x, scale, zero_point, low, high):
    """Returns the code as float32; once clamped, the magic constant rounds exactly."""
    code = tl.clamp(scale * x - zero_point, low, high, propagate_nan=tl.PropagateNan.ALL)
    return (code + 12582912.0) - 12582912.0


@triton.jit
def dequantize(code, scale, zero_point):
    """Returns the float32 value that a code stands for."""
    return tl.div_rn(code + zero_point, scale)


@triton.jit
def minimum_of(values, axis: tl.constexpr):
    """Returns the least value along an axis, NaN if any is; the plain reduction drops NaN."""
    has_nan = tl.max((values != values).to(tl.int32), axis)
    return tl.where(has_nan > 0, float("nan"), tl.min(values, axis))


@triton.jit
def maximum_of(values, axis: tl.constexpr):
    """Returns the greatest value along an axis, NaN if any is."""
    has_nan = tl.max((values != values).to(tl.int32), axis)
    return tl.where(has_nan > 0, float("nan"), tl.max(values, axis))
