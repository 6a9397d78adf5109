"""Fake quantization over the tensor's own range."""

import math

import torch

from synq_fast.reference._affine import fake_quantize_with, range_shape, symmetric_range
from synq_fast.reference._forward_mode import constant


def find_range(
    x: torch.Tensor, axis: int | None, groups: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact minimum and maximum in float32, `()`, `(C,)` or `(groups,)` along `axis`.

    NaN in the data is NaN in the range; without elements there is no range, and it is NaN too.
    """
    shape = range_shape(x, axis, groups)
    if x.numel() == 0:
        empty = torch.full(shape, math.nan, dtype=torch.float32, device=x.device)
        return empty, empty.clone()
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(shape[0], -1)
    return rows.amin(1).float().reshape(shape), rows.amax(1).float().reshape(shape)


def fake_quantize_dynamic(
    x: torch.Tensor,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
    symmetric: bool = False,
    ste: str = "identity",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake quantization from minimum to maximum; see `synq_fast.ops.fake_quantize_dynamic`."""
    range_min, range_max = find_range(constant(x), axis, groups)
    if symmetric:
        range_min, range_max = symmetric_range(range_min, range_max)
    y = fake_quantize_with(x, range_min, range_max, bits, axis, ste)
    return y, range_min, range_max
