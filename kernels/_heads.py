"""Tensors as the matrices of heads, read where they lie; csrc/ops/heads.h is the twin."""

import torch

from synq_fast.kernels._layout import finished, output_like


def heads_of(x: torch.Tensor) -> torch.Tensor:
    """Returns `x`, (B, H, N, d), copied only if its columns are no neighbours in memory."""
    return x if x.shape[3] <= 1 or x.stride(3) == 1 else x.contiguous()


def output_of_heads(x: torch.Tensor) -> torch.Tensor:
    """Returns an uninitialised result for `x` whose columns are neighbours."""
    y = output_like(x)
    return y if x.shape[3] <= 1 or y.stride(3) == 1 else y.new_empty(y.shape)


def finished_heads(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns what a kernel wrote, in the type and with the strides that a result for `x` has."""
    wanted = torch.empty_like(x)
    y = finished(y, x)
    return y if y.stride() == wanted.stride() else wanted.copy_(y)
