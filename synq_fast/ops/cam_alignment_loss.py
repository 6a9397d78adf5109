"""The loss that aligns a student's class activation map with a target."""

import torch

from synq_fast.ops._backend import select
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_number,
    check_same_device,
    shape_text,
)
from synq_fast.ops.grad_cam import check_cam_tensors
from synq_fast.reference.cam_alignment_loss import cam_alignment_loss as _reference


def cam_alignment_loss(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    target_map: torch.Tensor,
    *,
    clamp: float = 1e-10,
    eps: float = 1e-10,
) -> torch.Tensor:
    """Computes the mean squared difference of a Grad-CAM map and a target map.

    The map is `grad_cam(activations, gradients, (H, W))` at the size of the target. The loss is
    differentiable in `activations` only: the channel weights and the target are constants.

    Args:
        activations: `(B, C, h, w)`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        target_map: `(B, 1, H, W)`, the teacher's map as a rule; a floating type.
        clamp: Least channel weight, at least 0.
        eps: Added to the spread of the map, at least 0.

    Returns:
        The loss, a 0-d float32 tensor (float64 if an input is float64) whatever the autocast
        state; zero for an empty batch.

    Raises:
        TypeError: A tensor is not floating, or `clamp` or `eps` is not a number.
        ValueError: The shapes or devices do not agree, an image has no activation or no pixel, or
            `clamp` or `eps` is negative.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: the alignment of class activation maps of SynQ (ICLR 2025).
    """
    check_cam_tensors(activations, gradients)
    check_float_tensor("target_map", target_map)
    check_dims("target_map", target_map, "B, 1, H, W")
    batch, channels, height, width = target_map.shape
    if batch != activations.shape[0] or channels != 1 or height == 0 or width == 0:
        raise ValueError(
            f"target_map must have shape (B, 1, H, W) with B = {activations.shape[0]} as in "
            f"activations and at least one pixel, got {shape_text(target_map)}"
        )
    check_same_device("target_map", target_map, "activations", activations)
    check_number("clamp", clamp, least=0)
    check_number("eps", eps, least=0)
    select("cam_alignment_loss", activations.device)
    return _reference(activations, gradients, target_map, clamp=clamp, eps=eps)
