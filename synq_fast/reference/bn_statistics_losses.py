"""Reference of the loss on the batch-normalisation statistics of a network."""

from collections.abc import Sequence

import torch

from synq_fast.reference.bn_statistics_loss import bn_statistics_loss


def bn_statistics_losses(
    inputs: Sequence[torch.Tensor],
    running_means: Sequence[torch.Tensor],
    running_vars: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Returns the mean over the layers; see `synq_fast.ops.bn_statistics_losses`."""
    weights = [1.0] * len(inputs) if weights is None else weights
    terms = [
        weight * torch.stack(bn_statistics_loss(x, mean, var)).sum()
        for x, mean, var, weight in zip(inputs, running_means, running_vars, weights, strict=True)
        if weight
    ]
    if not terms:
        wide = any(x.dtype == torch.float64 for x in inputs)
        return inputs[0].new_zeros((), dtype=torch.float64 if wide else torch.float32)
    return torch.stack(terms).sum() / len(inputs)
