"""Reference of Grad-CAM++ from given activations, gradients and scores."""

import torch

from synq_fast.reference._cam import prepare, weighted_map
from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute


def grad_cam_plus_plus(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    score: torch.Tensor,
    size: tuple[int, int],
    *,
    eps: float = 1e-7,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Returns the normalised Grad-CAM++ map; see `synq_fast.ops.grad_cam_plus_plus`."""
    activations, gradients = prepare(activations, gradients, grid)
    weights = plus_plus_weights(constant(activations), gradients, to_compute(constant(score)), eps)
    return weighted_map(activations, weights, size, 0.0)


def plus_plus_weights(
    activations: torch.Tensor, gradients: torch.Tensor, score: torch.Tensor, eps: float
) -> torch.Tensor:
    """Returns the channel weights `(B, C, 1, 1)`, without their common factor exp(score).

    Numerator and denominator of alpha are divided by g^2, which would underflow.
    """
    denominator = 2 + activations.sum((2, 3), keepdim=True) * gradients
    vanishes = (denominator.abs() < eps) | (denominator == 0)
    # The stretching removes exp(score), a positive factor of the whole map: NaN alone stays.
    factor = torch.where(score.isnan(), score, 1.0)[:, None, None, None]
    slope = gradients.relu() * factor
    slope = torch.where(vanishes, slope * gradients.square(), slope)
    return (slope / torch.where(vanishes, 1.0, denominator)).sum((2, 3), keepdim=True)
