"""Reference of how much the heads of attention differ."""

import torch

from synq_fast.reference._precision import to_compute

C1, C2, LEAST_RANGE = 1e-4, 9e-4, 1e-8


def inter_head_similarity_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean of one minus the squared similarity; see `synq_fast.ops.inter_head_similarity_loss`."""
    x = to_compute(logits)
    if x.numel() == 0:
        return x.sum()
    with torch.autocast(x.device.type, enabled=False):
        # (B, N, H, M). `amin` would share the gradient among equal values.
        x = x.transpose(1, 2)
        low, high = x.min(-1, keepdim=True).values, x.max(-1, keepdim=True).values
        a = (x - low) * (1 / (high - low + LEAST_RANGE))
        mean = a.mean(-1, keepdim=True)
        centred = a - mean
        covariance = centred @ centred.mT / a.shape[-1]
    variance = covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    luminance = (2 * mean * mean.mT + C1) / (mean.square() + mean.mT.square() + C1)
    structure = (2 * covariance + C2) / (variance + variance.mT + C2)
    return (1 - (luminance * structure).square()).mean()
