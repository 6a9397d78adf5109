"""The arithmetic of a grid whose levels are small floats without a sign."""

import triton
import triton.language as tl

# Rounds to whole numbers; times a power of two, to multiples of that.
MAGIC = tl.constexpr(12582912.0)
# Times a float that is no power of two, gives the one before it.
LAST_BELOW = tl.constexpr(1 - 2.0**-24)


def largest_level(bits: int) -> int:
    """Returns the largest level: the mantissa and the three bits of the exponent are ones."""
    return ((1 << (bits - 2)) - 1) << 6


@triton.jit
def minifloat_level(x, scale, zero_point, largest, MANTISSA: tl.constexpr):
    """Returns the level next to x in steps, half to even, clamped to the grid; NaN stays."""
    # Clamping to levels before rounding equals clamping after it.
    steps = scale * x - zero_point
    steps = tl.clamp(steps, 0.0, largest, propagate_nan=tl.PropagateNan.ALL)
    # The exponent alone is the power of two at or below the number.
    power = (steps.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    magic = tl.maximum(power * (MAGIC / 2**MANTISSA), MAGIC)
    return (steps + magic) - magic


@triton.jit
def is_beyond(steps, largest):
    """Returns whether steps round to a level that the grid does not have; a NaN does not."""
    # Half a step below zero rounds to it; half a step above the largest level, where steps are 64
    # wide, rounds away from that: the float before is the last that does not.
    last = (largest + 32.0) * LAST_BELOW
    inside = tl.clamp(steps, -0.5, last, propagate_nan=tl.PropagateNan.ALL)
    # One comparison, which NaN does not meet: two would cost registers.
    return tl.abs(steps - inside) > 0.0


@triton.jit
def minifloat_gradient(gradient, x, scale, zero_point, largest):
    """Returns the gradient where `x` lies within the grid; NaN lies on neither side."""
    return tl.where(is_beyond(scale * x - zero_point, largest), 0.0, gradient)


@triton.jit
def minifloat_terms(gradient, x, scale, zero_point, largest, MANTISSA: tl.constexpr):
    """Returns the gradient of `x`, and terms as `learned_terms`, with a level for the code."""
    steps = scale * x - zero_point
    level = minifloat_level(x, scale, zero_point, largest, MANTISSA)
    beyond = is_beyond(steps, largest)
    distance = tl.where(beyond, -(level + zero_point), steps - level)
    return tl.where(beyond, 0.0, gradient), gradient * distance, tl.where(beyond, gradient, 0.0)
