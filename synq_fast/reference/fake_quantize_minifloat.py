"""Fake quantization to small floats."""

import torch

from synq_fast.reference._affine import affine_over, along_axis, as_range, outside, straight_through
from synq_fast.reference._forward_mode import constant

EXPONENT_BITS = 3


def mantissa_bits(bits: int) -> int:
    """Returns what is left of the bits beside the exponent's; there is no sign."""
    return bits - EXPONENT_BITS


def largest_level(bits: int) -> int:
    """Returns the largest level: all ones in the mantissa, at the largest exponent."""
    return ((2 << mantissa_bits(bits)) - 1) << 6


def unclamped_levels(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int
) -> torch.Tensor:
    """Returns the level that each value rounds to, half to even, before it is clamped; NaN stays.

    What lies below all levels gives -1 and what lies above them more than the largest.
    """
    steps = (scale * x.float() - zero_point).clamp(-1.0, 2.0 * largest_level(bits))
    # The exponent is one more than that of the power of two at or below a value.
    _, exponent = torch.frexp(steps.nan_to_num(0.0))
    power = (exponent - 1 - mantissa_bits(bits)).clamp(min=0)
    quantum = torch.ldexp(torch.ones_like(steps), power)
    return torch.round(steps / quantum) * quantum


def levels_of(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the values, and their levels before and after they are clamped."""
    largest = largest_level(bits)
    pair = affine_over(range_min, range_max, largest, 0)
    scale, zero_point = (along_axis(values, x, axis) for values in pair)
    levels = unclamped_levels(x, scale, zero_point, bits)
    clamped = levels.clamp(0.0, float(largest))
    return (clamped + zero_point) / scale, levels, clamped


def clipped(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
) -> torch.Tensor:
    """Returns where `x` rounds to a level that the grid does not have."""
    _, levels, clamped = levels_of(x, range_min, range_max, bits, axis)
    return outside(levels, clamped)


def fake_quantize_minifloat(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """Rounds `x` to a grid of small floats; see `synq_fast.ops.fake_quantize_minifloat`."""
    low, high = (constant(as_range(bound, x, axis)) for bound in (range_min, range_max))
    with torch.no_grad():
        y, levels, clamped = levels_of(x, low, high, bits, axis)
        blocked = outside(levels, clamped) if ste == "clip" else None
    return straight_through(x, y.to(x.dtype), blocked)
