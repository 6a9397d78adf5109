"""Reference of the loss on batch-normalisation statistics."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from synq_fast.reference._forward_mode import constant, in_forward_mode
from synq_fast.reference._precision import to_compute


class _MeanAndVariance(torch.autograd.Function):
    """Mean and biased variance over all dimensions but 1.

    Two passes and a short backward: `torch.var_mean` over these dimensions and its backward take
    five times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        mean = x.mean(dims, keepdim=True)
        var = (x - mean).square().mean(dims)
        ctx.save_for_backward(x, mean)
        return mean.flatten(), var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> torch.Tensor:
        x, mean = ctx.saved_tensors
        count = max(1, x.numel() // max(1, x.shape[1]))
        slope = (2 / count * grad_var).view(mean.shape)
        return torch.addcmul(grad_mean.view(mean.shape) / count, x - mean, slope)


def mean_and_variance(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and biased variance of each channel, `(C,)`."""
    if in_forward_mode():
        dims = [d for d in range(x.ndim) if d != 1]
        mean = x.mean(dims, keepdim=True)
        return mean.flatten(), (x - mean).square().mean(dims)
    mean, var = _MeanAndVariance.apply(x)
    return mean, var


def bn_statistics_loss(
    x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(mean_loss, var_loss)` of one layer; see `synq_fast.ops.bn_statistics_loss`."""
    mean, var = mean_and_variance(to_compute(x))
    mean_loss = (mean - to_compute(constant(running_mean))).square().mean()
    var_loss = (var - to_compute(constant(running_var))).square().mean()
    return mean_loss, var_loss
