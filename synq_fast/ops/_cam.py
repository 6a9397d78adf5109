"""What the class activation map ops share: checks, tokens as images, parts of the references."""

import math
from collections.abc import Callable
from typing import Any

import torch

from synq_fast.ops._checks import DTYPES
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_integer,
    check_not_empty,
    check_number,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference._cam import FLAT_SPREAD, normalise_map

Tensor = torch.Tensor

# As in csrc/cam.h.
KINDS = {"grad_cam": 0, "grad_cam_plus_plus": 1, "layer_cam": 2, "hires_cam": 3}
GRAD_CAM, PLUS_PLUS, LAYER_CAM, HIRES_CAM = KINDS.values()


def memory_format(channels_last: bool) -> torch.memory_format:
    """Returns the format that gradients are returned in."""
    return torch.channels_last if channels_last else torch.contiguous_format


def by_element(kind: int) -> bool:
    """Whether every activation has a weight of its own: its gradient."""
    return kind in (LAYER_CAM, HIRES_CAM)


def check_cam_tensors(activations: Tensor, gradients: Tensor, grid: tuple[int, int] | None) -> None:
    """Raises TypeError or ValueError unless these are activations with their gradients."""
    check_float_tensor("activations", activations)
    check_float_tensor("gradients", gradients)
    if grid is None:
        if activations.ndim != 4:
            raise ValueError(
                "activations must have shape (B, C, h, w), or (B, N, C) with grid=(h, w), "
                f"got {shape_text(activations)}"
            )
    else:
        _check_grid(activations, grid)
    if activations.shape[0] > 0:
        check_not_empty("activations", activations, "there is nothing to map")
    check_shape("gradients", gradients, activations.shape, "of activations")
    check_same_device("gradients", gradients, "activations", activations)


def _check_grid(activations: Tensor, grid: object) -> None:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f"grid must be a pair (height, width) or None, got {grid!r}")
    height, width = grid
    check_integer("grid[0], the height,", height, 1)
    check_integer("grid[1], the width,", width, 1)
    if activations.ndim != 3:
        raise ValueError(
            "grid is for tokens: activations must then have shape (B, N, C), "
            f"got {shape_text(activations)}"
        )
    tokens = activations.shape[1]
    if tokens != height * width:
        raise ValueError(
            f"activations have {tokens} tokens, but a grid of {height} x {width} has "
            f"{height * width}; cut class and register tokens off first, for example with "
            "activations[:, 1:] and gradients[:, 1:]"
        )


def check_bounds(clamp_name: str, clamp: float, eps: float) -> None:
    """Raises unless the least weight, minus infinity for none, and eps are at least 0."""
    if isinstance(clamp, bool) or clamp != -math.inf:
        check_number(clamp_name, clamp, least=0)
    check_number("eps", eps, least=0)


def kernel_inputs(activations: Any, gradients: Any, grid: tuple[int, int] | None) -> Any:
    """Returns both as `(B, C, h, w)` of one type, the gradients as constants."""
    if grid is not None:
        check_cam_tensors(activations, gradients, grid)
        activations, gradients = (
            x.view(x.shape[0], *grid, x.shape[2]).permute(0, 3, 1, 2)
            for x in (activations, gradients)
        )
    if not (isinstance(activations, Tensor) and isinstance(gradients, Tensor)):
        return activations, gradients
    if gradients.requires_grad:
        gradients = gradients.detach()
    if activations.dtype != gradients.dtype:
        check_cam_tensors(activations, gradients, None)
        activations, gradients = activations.float(), gradients.float()
    return activations, gradients


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
