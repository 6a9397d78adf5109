"""The arithmetic of a logarithmic grid and of its gradients."""

import triton
import triton.language as tl

# Added to a float's bits, carries into the exponent from the mantissa of the square root of 2 on.
CARRY = tl.constexpr(0x4AFB0C)


def least_ratio(bits: int) -> int:
    """Returns the bits of the least ratio that rounds to a power of two; no subnormal number."""
    return max(((127 - min(2**bits - 2, 126)) << 23) - CARRY.value, 1 << 23)


@triton.jit
def log_level(ratio, least):
    """Returns the power of two that a ratio rounds to, or zero; NaN stays."""
    word = tl.where(ratio < 1.0, ratio, 1.0).to(tl.int32, bitcast=True)
    power = ((word + CARRY) & 0x7F800000).to(tl.float32, bitcast=True)
    power = tl.where(word < least, 0.0, power)
    return tl.where(ratio != ratio, ratio, power)


@triton.jit
def log_terms(gradient, x, scale, least):
    """Returns the gradients of `x` and of the scale."""
    ratio = tl.div_rn(x, scale)
    level = log_level(ratio, least)
    above = ratio > 1.0
    slope = tl.div_rn(scale * level, x)
    of_x = tl.where(above | (level == 0.0), 0.0, gradient * slope)
    return of_x, tl.where(above, gradient, 0.0)
