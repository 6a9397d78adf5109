"""Grad-CAM from given activations and gradients."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._cam import check_cam_tensors, check_clamp, compute_map, on_reference
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import check_number, check_size
from synq_fast.reference.grad_cam import grad_cam as _reference


def grad_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    clamp: float | None = 1e-10,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Computes class activation maps in [0, 1] at the size of the image.

    The weight of a channel is the mean of its gradient, at least `clamp`; `clamp=None` leaves it as
    it is, which is the map of the Grad-CAM paper. The weighted sum of the channels goes through
    ReLU, is resized bilinearly (corners not aligned) and stretched by
    `(S - min) / (max - min + eps)` per image. A map whose spread is below 1e-6 of its maximum is
    all zero with zero gradient: stretching it would show rounding noise.

    The map is differentiable, once, in `activations`; the weights are constants to autograd.
    Pixels that share the minimum or the maximum share its gradient equally.

    Args:
        activations: `(B, C, h, w)`, contiguous or channels_last, or tokens `(B, N, C)` with
            `grid`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        size: `(height, width)` of the map in pixels.
        clamp: Least channel weight, at least 0; drops the channels that speak against the class.
            None keeps them.
        eps: Added to the spread, at least 0; with 0 the map does not depend on the scale of the
            loss.
        grid: `(h, w)` of the tokens of a transformer, N = h * w without class tokens; tokens are
            read as they lie, also where `x[:, 1:]` has cut a class token off.

    Returns:
        Maps `(B, 1, height, width)`, float32 (float64 if an input is float64).

    Raises:
        TypeError: A tensor is not floating, or `size`, `clamp`, `eps` or `grid` has another type.
        ValueError: The shapes or devices differ, an image has no activation, the tokens do not
            fill the grid, or `size`, `clamp` or `eps` is out of bounds.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, eq. 1-2, which has no clamp; the
    default is that of SynQ (ICLR 2025).
    """
    if has_torch_function_variadic(activations, gradients):
        overriding: torch.Tensor = overridden(grad_cam, locals())
        return overriding
    check_cam_tensors(activations, gradients, grid)
    size = check_size(size)
    least = check_clamp(clamp)
    check_number("eps", eps, least=0)
    if on_reference("grad_cam", activations, gradients):
        return _reference(activations, gradients, size, clamp=clamp, eps=eps, grid=grid)
    return compute_map("grad_cam", activations, gradients, None, size, least, eps, grid)
