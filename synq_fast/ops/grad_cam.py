"""Grad-CAM from given activations and gradients."""

import torch

from synq_fast.ops._backend import select
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_not_empty,
    check_number,
    check_same_device,
    check_shape,
    check_size,
)
from synq_fast.reference.grad_cam import grad_cam as _reference


def grad_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    clamp: float = 1e-10,
    eps: float = 1e-10,
) -> torch.Tensor:
    """Computes class activation maps in [0, 1] at the size of the image.

    The weight of a channel is the mean of its gradient, at least `clamp`. The weighted sum of the
    channels goes through ReLU, is resized bilinearly (corners not aligned) and stretched by
    `(S - min) / (max - min + eps)` per image. A map whose spread is below 1e-6 of its maximum is
    all zero with zero gradient: stretching it would show rounding noise.

    The map is differentiable in `activations`; the weights are constants to autograd.

    Args:
        activations: `(B, C, h, w)`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        size: `(height, width)` of the map in pixels.
        clamp: Least channel weight, at least 0; drops the channels that speak against the class.
        eps: Added to the spread, at least 0.

    Returns:
        Maps `(B, 1, height, width)`, float32 (float64 if an input is float64).

    Raises:
        TypeError: A tensor is not floating, or `size`, `clamp` or `eps` has another type.
        ValueError: The shapes or devices differ, an image has no activation, or `size`, `clamp` or
            `eps` is out of bounds.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, eq. 1-2; the clamp is that of SynQ (ICLR 2025).
    """
    check_cam_tensors(activations, gradients)
    size = check_size(size)
    check_number("clamp", clamp, least=0)
    check_number("eps", eps, least=0)
    select("grad_cam", activations.device)
    return _reference(activations, gradients, size, clamp=clamp, eps=eps)


def check_cam_tensors(activations: torch.Tensor, gradients: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless these are activations with their gradients."""
    check_float_tensor("activations", activations)
    check_float_tensor("gradients", gradients)
    check_dims("activations", activations, "B, C, h, w")
    if activations.shape[0] > 0:
        check_not_empty("activations", activations, "there is nothing to map")
    check_shape("gradients", gradients, activations.shape, "of activations")
    check_same_device("gradients", gradients, "activations", activations)
