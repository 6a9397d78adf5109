"""Tensors as rows of their last dimension."""

import torch

from synq_fast.kernels._layout import finished, memory_order


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Returns `x`, copied only if rows of its last dimension do not follow each other in memory."""
    order = memory_order(x)
    if order is None:
        x = torch.empty_like(x).copy_(x)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def restored(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns `y` in the type and with the strides that a result for `x` has."""
    wanted = torch.empty_like(x)
    y = finished(y, x)
    return y if y.stride() == wanted.stride() else wanted.copy_(y)


def warps_for(block: int) -> int:
    """Returns the warps of a program that handles `block` elements at a time."""
    return max(1, min(block // 128, 4))
