"""Reference of the entropy of the similarities between patch tokens."""

import math

import torch

from synq_fast.reference._forward_mode import constant_extrema
from synq_fast.reference._precision import to_compute

# As in torch.nn.functional.cosine_similarity: shorter tokens are divided by this, not their norm.
LEAST_NORM = 1e-8


def patch_similarity_entropy(
    tokens: torch.Tensor, *, points: int = 10, bandwidth: float = 0.01, eps: float = 1e-4
) -> torch.Tensor:
    """Returns each image's entropy, `(B,)`; see `synq_fast.ops.patch_similarity_entropy`."""
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = to_compute(tokens)
        unit = torch.nn.functional.normalize(tokens, dim=-1, eps=LEAST_NORM)
        similarity = unit @ unit.mT
        if tokens.shape[0] == 0:
            return similarity.sum((1, 2))
        low, high = constant_extrema(similarity)
        steps = torch.linspace(0, 1, points, dtype=tokens.dtype, device=tokens.device)
        grid = low + (high - low) * steps
        deviation = (similarity.flatten(1).unsqueeze(1) - grid.unsqueeze(1)) / bandwidth
        kernel = torch.exp(-0.5 * deviation.square()) / (bandwidth * math.sqrt(2 * math.pi))
        density = kernel.mean(-1) + eps
        return torch.trapezoid(-density * density.log(), grid)
