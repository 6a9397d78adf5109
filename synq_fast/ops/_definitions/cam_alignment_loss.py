"""The mean squared difference of a Grad-CAM map and a target, and its gradient."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast.ops._checks import DTYPES
from synq_fast.ops._definitions.grad_cam import (
    channel_weights,
    check_inputs,
    coarse_map,
    fake_spread,
    is_channels_last,
    resized_map,
    slope_of,
    spread,
)
from synq_fast.ops._op import Op, differentiable_once

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake_loss(
    activations: Tensor,
    gradients: Tensor,
    target_map: Tensor,
    clamp: float,
    eps: float,
    with_gradient: bool,
) -> Triple:
    check_inputs(activations, gradients)
    batch, channels, *small = activations.shape
    if target_map.ndim != 4 or target_map.shape[:2] != (batch, 1):
        raise ValueError(
            f"target_map must have shape ({batch}, 1, H, W), got {tuple(target_map.shape)}"
        )
    if target_map.dtype not in DTYPES:
        raise TypeError(f"target_map must be float32, float16 or bfloat16, got {target_map.dtype}")
    slopes = batch if with_gradient else 0
    return (
        activations.new_empty((), dtype=torch.float32),
        activations.new_empty((batch, channels), dtype=torch.float32),
        activations.new_empty((slopes, 1, *small), dtype=torch.float32),
    )


def _reference_loss(
    activations: Tensor,
    gradients: Tensor,
    target_map: Tensor,
    clamp: float,
    eps: float,
    with_gradient: bool,
) -> Triple:
    _, _, slope = _fake_loss(activations, gradients, target_map, clamp, eps, with_gradient)
    weights = channel_weights(gradients, clamp)
    coarse = coarse_map(activations, weights)
    height, width = target_map.shape[2:]

    target = target_map.float()
    pixels = max(target.numel(), 1)
    value = (resized_map(coarse, (height, width), eps) - target).square().sum() / pixels
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
    _fake_backward(grad, weights, slope, channels_last, dtype)
    return spread(weights, grad.float() * slope, channels_last, dtype)


def _autograd_loss(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        loss, weights, slope = output
        if inputs[-1]:
            ctx.mark_non_differentiable(weights, slope)
            ctx.save_for_backward(weights, slope)
            ctx.arguments = is_channels_last(inputs[0]), inputs[0].dtype
        else:
            ctx.mark_non_differentiable(loss, weights, slope)

    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        op = getattr(torch.ops.synq_fast.cam_alignment_loss_backward, suffix)
        return op(gradient, *ctx.saved_tensors, *ctx.arguments), *[None] * 5

    return setup, backward


OPS = {
    "cam_alignment_loss": Op(
        "(Tensor activations, Tensor gradients, Tensor target_map, float clamp, float eps,"
        " bool with_gradient) -> (Tensor, Tensor, Tensor)",
        _fake_loss,
        _reference_loss,
        _autograd_loss,
        triton_arguments=6,
    ),
    "cam_alignment_loss_backward": Op(
        "(Tensor grad, Tensor weights, Tensor slope, bool channels_last, ScalarType dtype)"
        " -> Tensor",
        _fake_backward,
        _reference_backward,
        differentiable_once("cam_alignment_loss"),
        triton_arguments=5,
    ),
}
