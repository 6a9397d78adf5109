"""Fake quantization over a logarithmic grid."""

import torch

from synq_fast.reference._affine import along_axis, as_range
from synq_fast.reference._forward_mode import constant

# The least float32 above the square root of one half: where a mantissa rounds up.
MIDDLE = 0.707106828689575195


def levels(ratio: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the power of two that each ratio, at most 1, rounds to, or zero; NaN stays.

    No power is below 2^-126, whatever the width: ratios that are subnormal numbers become zero.
    """
    mantissa, exponent = torch.frexp(ratio.clamp(max=1.0).nan_to_num(0.0))
    code = (mantissa < MIDDLE).int() - exponent
    power = torch.ldexp(torch.ones_like(ratio), -code.clamp(0, 126))
    kept = (ratio >= 2.0**-126) & (code <= 2**bits - 2)
    return torch.where(ratio.isnan(), ratio, power.masked_fill(~kept, 0.0))


def log_gradients(
    gradient: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x` and of scales that broadcast over it."""
    gradient, wide = gradient.float(), x.float()
    ratio = wide / scale
    level = levels(ratio, bits)
    above = ratio > 1
    of_x = (gradient * (scale * level / wide)).masked_fill(above | (level == 0), 0.0)
    return of_x.to(x.dtype), torch.where(above, gradient, 0.0).sum_to_size(scale.shape)


def fake_quantize_log(
    x: torch.Tensor, scale: torch.Tensor | float, bits: int, *, axis: int | None = None
) -> torch.Tensor:
    """Rounds to a scale times powers of two; see `synq_fast.ops.fake_quantize_log`."""
    wide, scale = x.float(), along_axis(as_range(scale, x, axis), x, axis)
    fixed, unit = constant(wide), constant(scale)
    ratio = fixed / unit
    level = levels(ratio, bits)
    y = unit * level
    above = ratio > 1
    blocked = above | (level == 0)
    # Nothing in value: they carry the derivatives.
    of_x = wide.masked_fill(blocked, 0.0) * (y / fixed).masked_fill(blocked, 0.0)
    of_scale = torch.where(above, scale, 0.0)
    y = y + (of_x - constant(of_x)) + (of_scale - constant(of_scale))
    return y.to(x.dtype)
