"""From activations and their weights to a normalised class activation map."""

import math

import torch

from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute

# Below this fraction of its peak, the spread of a map is the rounding noise of the interpolation.
FLAT_SPREAD = 1e-6


def as_images(x: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Returns `(B, h * w, C)` tokens as a `(B, C, h, w)` view; without a grid, `x` itself."""
    return x if grid is None else x.unflatten(1, grid).movedim(-1, 1)


def prepare(
    activations: torch.Tensor, gradients: torch.Tensor, grid: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both as `(B, C, h, w)` in the type of computation, the gradients as constants."""
    return (
        to_compute(as_images(activations, grid)),
        to_compute(constant(as_images(gradients, grid))),
    )


def least_weight(clamp: float | None) -> float:
    """Returns the bound that the kernels take; below minus infinity is nothing, and NaN stays."""
    return -math.inf if clamp is None else clamp


def weighted_map(
    activations: torch.Tensor, weights: torch.Tensor, size: tuple[int, int], eps: float
) -> torch.Tensor:
    """Returns the `(B, 1, *size)` map of `(B, C, h, w)` activations.

    `weights` is `(B, C, 1, 1)`, or `(B, C, h, w)` for one weight per activation.
    """
    coarse = (weights * activations).sum(1, keepdim=True).relu()
    if coarse.shape[0] == 0:
        return coarse[:, :, :1, :1].expand(0, 1, *size)
    return normalise_map(
        torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False), eps
    )


def normalise_map(cam: torch.Tensor, eps: float) -> torch.Tensor:
    """Stretches each `(B, 1, H, W)` map to [0, 1]; a flat map becomes zero without gradient."""
    low = cam.amin((2, 3), keepdim=True)
    peak = cam.amax((2, 3), keepdim=True)
    spread = peak - low
    # Comparisons with NaN are false, so a map with NaN is never taken for flat.
    flat = (spread < FLAT_SPREAD * peak) | (peak == 0)
    stretched = (cam - low) / torch.where(flat, 1.0, spread + eps)
    return torch.where(flat, 0.0, stretched)
