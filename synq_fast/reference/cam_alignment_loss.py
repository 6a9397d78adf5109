"""Reference of the loss that aligns two class activation maps."""

import torch

from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute
from synq_fast.reference.grad_cam import grad_cam


def cam_alignment_loss(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    target_map: torch.Tensor,
    *,
    clamp: float | None = 1e-10,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Returns the mean squared map difference; see `synq_fast.ops.cam_alignment_loss`."""
    height, width = target_map.shape[-2:]
    cam = grad_cam(activations, gradients, (height, width), clamp=clamp, eps=eps, grid=grid)
    squared = (cam - to_compute(constant(target_map))).square()
    return squared.sum() / max(squared.numel(), 1)
