"""The loss that aligns a student's class activation map with a target."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._backend import select
from synq_fast.ops._cam import check_cam_tensors, check_clamp, kernel_inputs, on_reference
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_number,
    check_same_device,
    shape_text,
)
from synq_fast.reference.cam_alignment_loss import cam_alignment_loss as _reference

_default = torch.ops.synq_fast.cam_alignment_loss.default
_triton = torch.ops.synq_fast.cam_alignment_loss.triton


def cam_alignment_loss(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    target_map: torch.Tensor,
    *,
    clamp: float | None = 1e-10,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Computes the mean squared difference of a Grad-CAM map and a target map.

    The map is `grad_cam(activations, gradients, (H, W))` at the size of the target, with the same
    `clamp` and `eps`. The loss is differentiable, once, in `activations` only: the channel weights
    and the target are constants. Neither pass writes a map of that size.

    Args:
        activations: `(B, C, h, w)`, contiguous or channels_last, or tokens `(B, N, C)` with
            `grid`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        target_map: `(B, 1, H, W)`, the teacher's map as a rule; a floating type.
        clamp: Least channel weight, at least 0, or None, as in `grad_cam`.
        eps: Added to the spread of the map, at least 0.
        grid: `(h, w)` of the tokens of a transformer, N = h * w without class tokens.

    Returns:
        The loss, a 0-d float32 tensor (float64 if an input is float64) whatever the autocast
        state; zero for an empty batch.

    Raises:
        TypeError: A tensor is not floating, or `clamp`, `eps` or `grid` has another type.
        ValueError: The shapes or devices do not agree, an image has no activation or no pixel, the
            tokens do not fill the grid, or `clamp` or `eps` is negative.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the alignment of class activation maps of SynQ (ICLR 2025).
    """
    if has_torch_function_variadic(activations, gradients, target_map):
        overriding: torch.Tensor = overridden(cam_alignment_loss, locals())
        return overriding
    check_cam_tensors(activations, gradients, grid)
    check_float_tensor("target_map", target_map)
    check_dims("target_map", target_map, "B, 1, H, W")
    batch, channels, height, width = target_map.shape
    if batch != activations.shape[0] or channels != 1 or height == 0 or width == 0:
        raise ValueError(
            f"target_map must have shape (B, 1, H, W) with B = {activations.shape[0]} as in "
            f"activations and at least one pixel, got {shape_text(target_map)}"
        )
    check_same_device("target_map", target_map, "activations", activations)
    least = check_clamp(clamp)
    check_number("eps", eps, least=0)
    name = "cam_alignment_loss"
    if on_reference(name, activations, gradients, target_map):
        return _reference(activations, gradients, target_map, clamp=clamp, eps=eps, grid=grid)
    op = _triton if select(name, activations.device) == "triton" else _default
    images = kernel_inputs(activations, gradients, grid)
    with_gradient = torch.is_grad_enabled() and activations.requires_grad
    result: torch.Tensor = op(*images, target_map, least, eps, with_gradient)[0]
    return result
