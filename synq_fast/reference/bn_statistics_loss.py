"""Reference of the loss on batch-normalisation statistics."""

import torch

from synq_fast.reference._precision import to_compute


def bn_statistics_loss(
    x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(mean_loss, var_loss)` of one layer; see `synq_fast.ops.bn_statistics_loss`."""
    x = to_compute(x)
    dims = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x, dims, correction=0)
    mean_loss = (mean - to_compute(running_mean.detach())).square().mean()
    var_loss = (var - to_compute(running_var.detach())).square().mean()
    return mean_loss, var_loss
