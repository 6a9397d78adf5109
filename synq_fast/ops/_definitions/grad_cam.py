"""Class activation maps: one op for the family, and its gradient in the activations."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast.ops._checks import DTYPES
from synq_fast.ops._op import Op, differentiable_once
from synq_fast.reference._cam import FLAT_SPREAD, normalise_map
from synq_fast.reference.grad_cam_plus_plus import plus_plus_weights

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]

# As in csrc/grad_cam.h.
KINDS = {"grad_cam": 0, "grad_cam_plus_plus": 1, "layer_cam": 2, "hires_cam": 3}
GRAD_CAM, PLUS_PLUS, LAYER_CAM, HIRES_CAM = KINDS.values()


def by_element(kind: int) -> bool:
    """Whether every activation has a weight of its own: its gradient."""
    return kind in (LAYER_CAM, HIRES_CAM)


def check_inputs(activations: Tensor, gradients: Tensor) -> None:
    """Raises unless these are images of one supported type."""
    if activations.dtype not in DTYPES or gradients.dtype != activations.dtype:
        raise TypeError(
            "activations and gradients must both be float32, float16 or bfloat16, got "
            f"{activations.dtype} and {gradients.dtype}"
        )
    if activations.ndim != 4 or gradients.shape != activations.shape:
        raise ValueError(
            "activations and gradients must have one shape (B, C, h, w), got "
            f"{tuple(activations.shape)} and {tuple(gradients.shape)}"
        )


def is_channels_last(activations: Tensor) -> bool:
    """Whether the gradient of these activations is better written channels_last."""
    return bool(activations.stride(1) == 1)


def memory_format(channels_last: bool) -> torch.memory_format:
    """The format that gradients are returned in."""
    return torch.channels_last if channels_last else torch.contiguous_format


def _check_map(score: Tensor | None, kind: int, batch: int) -> None:
    if kind not in KINDS.values():
        raise ValueError(f"kind must be one of {KINDS}, got {kind}")
    if (score is not None) != (kind == PLUS_PLUS):
        raise ValueError("score belongs to Grad-CAM++, and only there")
    if score is not None and (score.dtype != torch.float32 or score.shape != (batch,)):
        raise ValueError(
            f"score must be float32 of shape ({batch},), got {score.dtype} {tuple(score.shape)}"
        )


def _fake_map(
    activations: Tensor,
    gradients: Tensor,
    score: Tensor | None,
    kind: int,
    height: int,
    width: int,
    clamp: float,
    eps: float,
) -> Triple:
    check_inputs(activations, gradients)
    batch, channels, *small = activations.shape
    _check_map(score, kind, batch)
    return (
        activations.new_empty((batch, 1, height, width), dtype=torch.float32),
        activations.new_empty((batch, 0 if by_element(kind) else channels), dtype=torch.float32),
        activations.new_empty((batch, 1, *small), dtype=torch.float32),
    )


def element_weights(gradients: Tensor, kind: int, clamp: float) -> Tensor:
    """Returns the weights of LayerCAM or HiResCAM."""
    return gradients.float().clamp_min(clamp) if kind == LAYER_CAM else gradients.float()


def channel_weights(gradients: Tensor, clamp: float) -> Tensor:
    """Returns the weights `(B, C)` of Grad-CAM."""
    return gradients.float().mean((2, 3)).clamp_min(clamp)


def coarse_map(activations: Tensor, weights: Tensor) -> Tensor:
    """Returns the map `(B, 1, h, w)` before it is resized; weights are `(B, C[, h, w])`."""
    weights = weights if weights.ndim == 4 else weights[:, :, None, None]
    return (weights * activations.float()).sum(1, keepdim=True).relu()


def resized_map(coarse: Tensor, size: tuple[int, int], eps: float) -> Tensor:
    """Returns the map `(B, 1, *size)`, resized and stretched."""
    if coarse.shape[0] == 0:
        return coarse.new_zeros((0, 1, *size))
    resized = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    return normalise_map(resized, eps)


def _reference_map(
    activations: Tensor,
    gradients: Tensor,
    score: Tensor | None,
    kind: int,
    height: int,
    width: int,
    clamp: float,
    eps: float,
) -> Triple:
    _fake_map(activations, gradients, score, kind, height, width, clamp, eps)
    if by_element(kind):
        weights = element_weights(gradients, kind, clamp)
        coarse = coarse_map(activations, weights)
        weights = weights.new_empty((activations.shape[0], 0))
    else:
        if score is None:
            weights = channel_weights(gradients, clamp)
        else:
            weights = plus_plus_weights(activations.float(), gradients.float(), score, clamp)[
                :, :, 0, 0
            ]
        coarse = coarse_map(activations, weights)
    return resized_map(coarse, (height, width), eps), weights, coarse


def slope_of(
    coarse: Tensor, size: tuple[int, int], eps: float, gradient: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns the gradient of the map before ReLU, `(B, 1, h, w)`; autograd does not reach here.

    `gradient` maps the resized map to the gradient that it receives. See csrc/cpu/cam_map.cpp.
    """
    resized = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    cam = normalise_map(resized, eps)
    d = gradient(cam)
    low, peak = resized.amin((2, 3), keepdim=True), resized.amax((2, 3), keepdim=True)
    at_low, at_peak = resized == low, resized == peak
    dn = (d * cam).sum((2, 3), keepdim=True)
    pulled = d + at_low * ((dn - d.sum((2, 3), keepdim=True)) / at_low.sum((2, 3), keepdim=True))
    pulled = pulled - at_peak * (dn / at_peak.sum((2, 3), keepdim=True))
    spread = peak - low
    flat = (spread < FLAT_SPREAD * peak) | (peak == 0)
    pulled = torch.where(flat, 0.0, pulled / torch.where(flat, 1.0, spread + eps))
    slope = torch.ops.aten.upsample_bilinear2d_backward(pulled, size, coarse.shape, False)
    return torch.where(coarse <= 0, 0.0, slope)


def spread(weights: Tensor, slope: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Returns weights times slope, `(B, C, h, w)` in the layout and type asked for."""
    weights = weights if weights.ndim == 4 else weights[:, :, None, None]
    product = (weights * slope).to(dtype)
    return torch.empty_like(product, memory_format=memory_format(channels_last)).copy_(product)


def fake_spread(weights: Tensor, slope: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Returns the empty gradient of the activations."""
    shape = (slope.shape[0], weights.shape[1], *slope.shape[2:])
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    if tuple(weights.shape) not in (shape[:2], shape):
        raise ValueError(f"weights must have shape (B, C) or {shape}, got {tuple(weights.shape)}")
    return torch.empty(
        shape, dtype=dtype, device=slope.device, memory_format=memory_format(channels_last)
    )


def _fake_backward(
    grad: Tensor,
    weights: Tensor,
    coarse: Tensor,
    kind: int,
    clamp: float,
    eps: float,
    channels_last: bool,
    dtype: torch.dtype,
) -> Tensor:
    if grad.ndim != 4 or grad.shape[0] != coarse.shape[0] or grad.dtype != torch.float32:
        raise ValueError(
            f"grad must be float32 of shape (B, 1, H, W), got {grad.dtype} {tuple(grad.shape)}"
        )
    return fake_spread(weights, coarse, channels_last, dtype)


def _reference_backward(
    grad: Tensor,
    weights: Tensor,
    coarse: Tensor,
    kind: int,
    clamp: float,
    eps: float,
    channels_last: bool,
    dtype: torch.dtype,
) -> Tensor:
    result = _fake_backward(grad, weights, coarse, kind, clamp, eps, channels_last, dtype)
    if result.numel() == 0:
        return result
    height, width = grad.shape[2:]
    slope = slope_of(coarse, (height, width), eps, lambda _: grad)
    if by_element(kind):
        weights = element_weights(weights, kind, clamp)
    return spread(weights, slope, channels_last, dtype)


def _autograd_map(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        activations, gradients, _, kind, _, _, clamp, eps = inputs
        _, weights, coarse = output
        ctx.mark_non_differentiable(weights, coarse)
        ctx.save_for_backward(gradients if by_element(kind) else weights, coarse)
        ctx.arguments = kind, clamp, eps, is_channels_last(activations), activations.dtype

    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        op = getattr(torch.ops.synq_fast.grad_cam_backward, suffix)
        return op(gradient, *ctx.saved_tensors, *ctx.arguments), *[None] * 7

    return setup, backward


OPS = {
    "grad_cam": Op(
        "(Tensor activations, Tensor gradients, Tensor? score, int kind, SymInt height,"
        " SymInt width, float clamp, float eps) -> (Tensor, Tensor, Tensor)",
        _fake_map,
        _reference_map,
        _autograd_map,
        triton_arguments=8,
    ),
    "grad_cam_backward": Op(
        "(Tensor grad, Tensor weights, Tensor coarse, int kind, float clamp, float eps,"
        " bool channels_last, ScalarType dtype) -> Tensor",
        _fake_backward,
        _reference_backward,
        differentiable_once("a class activation map"),
        triton_arguments=8,
    ),
}
