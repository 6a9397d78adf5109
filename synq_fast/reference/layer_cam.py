"""Reference of LayerCAM from given activations and gradients."""

import torch

from synq_fast.reference._cam import least_weight, prepare, weighted_map


def layer_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    clamp: float | None = 1e-10,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Returns the normalised LayerCAM map; see `synq_fast.ops.layer_cam`."""
    activations, gradients = prepare(activations, gradients, grid)
    weights = gradients.clamp_min(least_weight(clamp))
    return weighted_map(activations, weights, size, eps)
