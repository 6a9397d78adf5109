"""The loss that aligns a student's class activation map with a target."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._cam import (
    channel_weights,
    check_bounds,
    check_cam_tensors,
    coarse_map,
    fake_spread,
    kernel_inputs,
    resized_map,
    slope_of,
    spread,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_same_device,
    shape_text,
)
from synq_fast.reference._cam import least_weight
from synq_fast.reference.cam_alignment_loss import cam_alignment_loss as _plain

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake(
    activations: Tensor,
    gradients: Tensor,
    target_map: Tensor,
    clamp: float,
    eps: float,
    with_gradient: bool,
) -> Triple:
    check_cam_tensors(activations, gradients, None)
    check_float_tensor("target_map", target_map)
    check_dims("target_map", target_map, "B, 1, H, W")
    batch, channels, height, width = target_map.shape
    if batch != activations.shape[0] or channels != 1 or height == 0 or width == 0:
        raise ValueError(
            f"target_map must have shape (B, 1, H, W) with B = {activations.shape[0]} as in "
            f"activations and at least one pixel, got {shape_text(target_map)}"
        )
    check_same_device("target_map", target_map, "activations", activations)
    check_bounds("clamp", clamp, eps)
    batch, channels, *small = activations.shape
    slopes = batch if with_gradient else 0
    return (
        activations.new_empty((), dtype=torch.float32),
        activations.new_empty((batch, channels), dtype=torch.float32),
        activations.new_empty((slopes, 1, *small), dtype=torch.float32),
    )


def _reference(
    activations: Tensor,
    gradients: Tensor,
    target_map: Tensor,
    clamp: float,
    eps: float,
    with_gradient: bool,
) -> Triple:
    weights = channel_weights(gradients, clamp)
    coarse = coarse_map(activations, weights)
    height, width = target_map.shape[2:]
    target = target_map.float()
    pixels = max(target.numel(), 1)
    value = (resized_map(coarse, (height, width), eps) - target).square().sum() / pixels
    slope = torch.empty_like(coarse) if with_gradient else coarse.new_empty((0, *coarse.shape[1:]))
    if with_gradient and coarse.numel() > 0:
        slope = slope_of(coarse, (height, width), eps, lambda cam: 2 / pixels * (cam - target))
    return value, weights, slope


def _fake_backward(
    grad: Tensor, weights: Tensor, slope: Tensor, channels_last: bool, dtype: torch.dtype
) -> Tensor:
    if grad.numel() != 1:
        raise ValueError(f"grad must hold one value, got shape {tuple(grad.shape)}")
    return fake_spread(weights, slope, channels_last, dtype)


def _reference_backward(
    grad: Tensor, weights: Tensor, slope: Tensor, channels_last: bool, dtype: torch.dtype
) -> Tensor:
    return spread(weights, grad.float() * slope, channels_last, dtype)


register(
    "cam_alignment_loss_backward",
    "(Tensor grad, Tensor weights, Tensor slope, bool channels_last, ScalarType dtype) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="cam_alignment_loss",
)
_op = register(
    "cam_alignment_loss",
    "(Tensor activations, Tensor gradients, Tensor target_map, float clamp, float eps,"
    " bool with_gradient) -> (Tensor loss, Tensor weights, Tensor slope)",
    fake=_fake,
    reference=_reference,
    gradients={
        "activations": "cam_alignment_loss_backward(grad_loss, weights, slope,"
        " is_channels_last(activations), dtype_of(activations)) if with_gradient else None"
    },
)


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

    The loss is `mean((map - target_map)^2)` with `map = grad_cam(activations, gradients, (H, W))`
    at the size of the target and the same `clamp` and `eps`. It is differentiable, once, in
    `activations` only: the channel weights and the target are constants. Neither pass writes a map
    of that size.

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
        overriding: Tensor = overridden(cam_alignment_loss, locals())
        return overriding
    images = kernel_inputs(activations, gradients, grid)
    op = _op.on(activations, gradients, target_map)
    with_gradient = torch.is_grad_enabled() and getattr(activations, "requires_grad", False)
    arguments = (*images, target_map, least_weight(clamp), eps, with_gradient)
    if op is None or bool in (type(clamp), type(eps)):
        _op.check(*arguments)
        return _plain(activations, gradients, target_map, clamp=clamp, eps=eps, grid=grid)
    try:
        result: Tensor = op(*arguments)[0]
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
