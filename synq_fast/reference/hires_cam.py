"""Reference of HiResCAM from given activations and gradients."""

import torch

from synq_fast.reference._cam import prepare, weighted_map


def hires_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Returns the normalised HiResCAM map; see `synq_fast.ops.hires_cam`."""
    return weighted_map(*prepare(activations, gradients, grid), size, eps)
