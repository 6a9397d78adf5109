"""Fake quantization over the tensor's own range."""

import math

import torch

from synq_fast.reference._affine import fake_quantize_with


def find_range(x: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact minimum and maximum in float32, `()` or `(C,)` along `axis`.

    NaN in the data is NaN in the range; without elements there is no range, and it is NaN too.
    """
    shape = () if axis is None else (x.shape[axis],)
    if x.numel() == 0:
        empty = torch.full(shape, math.nan, dtype=torch.float32, device=x.device)
        return empty, empty.clone()
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)
    return rows.amin(1).float().reshape(shape), rows.amax(1).float().reshape(shape)


def fake_quantize_dynamic(
    x: torch.Tensor, bits: int, *, axis: int | None = None, ste: str = "identity"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake quantization from minimum to maximum; see `synq_fast.ops.fake_quantize_dynamic`."""
    range_min, range_max = find_range(x.detach(), axis)
    y = fake_quantize_with(x, range_min, range_max, bits, axis, ste)
    return y, range_min, range_max
