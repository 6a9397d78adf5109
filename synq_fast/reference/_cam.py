"""From channel weights to a normalised class activation map."""

import torch

# Below this fraction of its peak, the spread of a map is the rounding noise of the interpolation.
FLAT_SPREAD = 1e-6


def weighted_map(
    activations: torch.Tensor, weights: torch.Tensor, size: tuple[int, int], eps: float
) -> torch.Tensor:
    """Returns the `(B, 1, *size)` map of `(B, C, h, w)` activations and `(B, C, 1, 1)` weights."""
    coarse = (weights * activations).sum(1, keepdim=True).relu()
    if coarse.shape[0] == 0:
        return activations.new_zeros((0, 1, *size))
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
