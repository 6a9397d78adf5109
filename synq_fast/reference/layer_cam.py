"""Reference of LayerCAM from given activations and gradients."""

import torch

from synq_fast.reference._cam import prepare, weighted_map


def layer_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    clamp: float = 1e-10,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Returns the normalised LayerCAM map; see `synq_fast.ops.layer_cam`."""
    activations, gradients = prepare(activations, gradients, grid)
    return weighted_map(activations, gradients.clamp_min(clamp), size, eps)
