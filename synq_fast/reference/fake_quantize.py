"""Fake quantization over a given range."""

import torch

from synq_fast.reference._affine import as_range, fake_quantize_with
from synq_fast.reference._forward_mode import constant


def fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """Rounds `x` to the `2^bits` levels of an affine grid; see `synq_fast.ops.fake_quantize`."""
    low, high = (constant(as_range(bound, x, axis, groups)) for bound in (range_min, range_max))
    return fake_quantize_with(x, low, high, bits, axis, ste)
