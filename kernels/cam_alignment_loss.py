"""The mean squared difference of a Grad-CAM map and a target, without a map of that size."""

import torch

from synq_fast.kernels._cam import GRAD_CAM, make_coarse
from synq_fast.kernels._cam_gradient import pull_back, spread


def cam_alignment_loss(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    target_map: torch.Tensor,
    clamp: float,
    eps: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the loss, the weights `(B, C)` and, if asked for, the slope `(B, 1, h, w)`."""
    weights, coarse = make_coarse(activations, gradients, None, GRAD_CAM, clamp)
    if coarse.numel() == 0:
        return coarse.new_zeros(()), weights, coarse
    loss, slope = pull_back(coarse, target_map, eps, loss=True, with_slope=with_gradient)
    return loss, weights, slope


def cam_alignment_loss_backward(
    gradient: torch.Tensor,
    weights: torch.Tensor,
    slope: torch.Tensor,
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns the gradient of the activations."""
    return spread(weights, slope, gradient, GRAD_CAM, 0.0, channels_last, dtype)
