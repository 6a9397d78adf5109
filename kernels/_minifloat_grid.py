"""The arithmetic of a grid whose levels are small floats without a sign."""

import triton
import triton.language as tl

# Rounds to whole numbers; times a power of two, to multiples of that.
MAGIC = tl.constexpr(12582912.0)


def largest_level(bits: int) -> int:
    """Returns the largest level: the mantissa and the three bits of the exponent are ones."""
    return (2 ** (bits - 2) - 1) * 2**6


@triton.jit
def minifloat_level(x, scale, zero_point, largest, MANTISSA: tl.constexpr):
    """Returns the level next to x in steps; it may be below zero or above all; NaN stays."""
    steps = scale * x - zero_point
    steps = tl.clamp(steps, -1.0, 2.0 * largest, propagate_nan=tl.PropagateNan.ALL)
    # The exponent alone is the power of two; that of what is negative is too small to matter.
    power = (steps.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    magic = tl.maximum(power * (MAGIC / 2**MANTISSA), MAGIC)
    return (steps + magic) - magic


@triton.jit
def minifloat_gradient(gradient, x, scale, zero_point, largest, MANTISSA: tl.constexpr):
    """Returns the gradient where `x` lies within the grid; NaN lies on neither side."""
    level = minifloat_level(x, scale, zero_point, largest, MANTISSA)
    return tl.where((level < 0.0) | (level > largest), 0.0, gradient)
