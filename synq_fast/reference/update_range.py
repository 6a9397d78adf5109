"""Reference of the bias-corrected moving average of a tensor's range."""

import math

import torch

from synq_fast.reference._forward_mode import constant, constant_extrema


@torch.no_grad()
def update_range(
    x: torch.Tensor,
    state_min: torch.Tensor,
    state_max: torch.Tensor,
    step: torch.Tensor,
    beta: float = 0.9,
) -> None:
    """Folds the extrema of `x` into the state in place; see `synq_fast.ops.update_range`."""
    batch_min, batch_max = constant_extrema(x)
    for state, value in ((state_min, batch_min), (state_max, batch_max)):
        # Not add(alpha=...): it may fuse product and sum into one rounding.
        state.mul_(beta).add_(value.to(state.dtype).mul(1 - beta))
    step.add_(1)


@torch.no_grad()
def read_range(
    state_min: torch.Tensor,
    state_max: torch.Tensor,
    step: torch.Tensor,
    beta: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the corrected range of the running state; see `synq_fast.ops.read_range`."""
    log_beta = math.log(beta) if beta > 0 else -math.inf
    # 1 - beta^step, without the cancellation that float32 has there for beta near 1.
    correction = -torch.expm1(step.to(state_min.dtype) * log_beta)
    return constant(state_min) / correction, constant(state_max) / correction
