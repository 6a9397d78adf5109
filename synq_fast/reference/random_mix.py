"""Elements of one tensor or of another, by chance."""

import torch

from synq_fast.reference._philox import kept


def random_mix(
    a: torch.Tensor,
    b: torch.Tensor,
    keep: float,
    seed: torch.Tensor | int,
    *,
    offset: int = 0,
) -> torch.Tensor:
    """Takes each element of `a` with probability `keep`; see `synq_fast.ops.random_mix`."""
    return torch.where(kept(a, seed, keep, offset), a, b)
