"""Reference of Grad-CAM from given activations and gradients."""

import torch

from synq_fast.reference._cam import weighted_map
from synq_fast.reference._precision import to_compute


def grad_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    clamp: float = 1e-10,
    eps: float = 1e-10,
) -> torch.Tensor:
    """Returns the normalised Grad-CAM map; see `synq_fast.ops.grad_cam`."""
    gradients = to_compute(gradients.detach())
    weights = gradients.mean((2, 3), keepdim=True).clamp_min(clamp)
    return weighted_map(to_compute(activations), weights, size, eps)
