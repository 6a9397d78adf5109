"""Integer codes of the affine quantizer."""

import torch

from synq_fast.reference._affine import (
    along_axis,
    as_range,
    clamp_codes,
    scale_and_zero_point,
    unclamped_codes,
)
from synq_fast.reference._forward_mode import constant


@torch.no_grad()
def quantize_codes(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `(codes, scale, zero_point)`; see `synq_fast.ops.quantize_codes`."""
    x = constant(x)
    low, high = (constant(as_range(bound, x, axis, groups)) for bound in (range_min, range_max))
    scale, zero_point = scale_and_zero_point(low, high, bits)
    codes = unclamped_codes(x, along_axis(scale, x, axis), along_axis(zero_point, x, axis))
    codes = clamp_codes(codes, bits).nan_to_num(nan=0.0)
    return codes.to(torch.int8 if bits <= 8 else torch.int16), scale, zero_point
