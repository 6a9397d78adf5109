"""Mean and variance of every channel of every image."""

import torch

from synq_fast.reference._precision import to_compute


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments over the positions of each channel; see `synq_fast.ops.channel_moments`."""
    value = to_compute(x).reshape(*x.shape[:2], x.shape[2:].numel())
    mean = value.mean(2, keepdim=True)
    distance = value - mean.detach()
    # Less what rounding left of the mean.
    variance = distance.square().mean(2) - distance.mean(2).square()
    return mean.squeeze(2), variance
