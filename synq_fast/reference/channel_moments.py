"""Mean and mean square of every channel of every image."""

import torch


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments over the positions of each channel; see `synq_fast.ops.channel_moments`."""
    value = x if x.dtype == torch.float64 else x.float()
    value = value.reshape(*x.shape[:2], x.shape[2:].numel())
    return value.mean(2), value.square().mean(2)
