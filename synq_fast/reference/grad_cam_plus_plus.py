"""Reference of Grad-CAM++ from given activations, gradients and scores."""

import torch

from synq_fast.reference._cam import prepare, weighted_map
from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute

# exp(score) is one positive factor per map, which the normalisation removes: capping it changes
# nothing but keeps it finite.
MAX_SCORE = 50.0


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
    return weighted_map(activations, weights, size, eps)


def plus_plus_weights(
    activations: torch.Tensor, gradients: torch.Tensor, score: torch.Tensor, eps: float
) -> torch.Tensor:
    """Returns the channel weights `(B, C, 1, 1)`."""
    squared = gradients.square()
    third = (activations * squared * gradients).sum((2, 3), keepdim=True)
    denominator = 2 * squared + third + eps
    alpha = squared / torch.where(denominator == 0, 1.0, denominator)
    slope = (score.clamp_max(MAX_SCORE).exp()[:, None, None, None] * gradients).relu()
    return (alpha * slope).sum((2, 3), keepdim=True)
