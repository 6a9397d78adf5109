"""Grad-CAM from given activations and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._cam import (
    GRAD_CAM,
    KINDS,
    PLUS_PLUS,
    by_element,
    channel_weights,
    check_bounds,
    check_cam_tensors,
    coarse_map,
    element_weights,
    fake_spread,
    kernel_inputs,
    resized_map,
    slope_of,
    spread,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_same_device,
    check_shape,
    check_size,
)
from synq_fast.reference._cam import least_weight
from synq_fast.reference.grad_cam import grad_cam as _plain
from synq_fast.reference.grad_cam_plus_plus import plus_plus_weights

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _check(
    activations: Tensor,
    gradients: Tensor,
    score: Tensor | None,
    kind: int,
    height: int,
    width: int,
    clamp: float,
    eps: float,
) -> None:
    check_cam_tensors(activations, gradients, None)
    if not 0 <= kind < len(KINDS):
        raise ValueError(f"kind must be one of {KINDS}, got {kind}")
    if (score is not None) != (kind == PLUS_PLUS):
        raise ValueError("score belongs to Grad-CAM++, and only there")
    if score is not None:
        check_float_tensor("score", score)
        check_shape("score", score, activations.shape[:1], "(B,)")
        check_same_device("score", score, "activations", activations)
    check_size((height, width))
    # For Grad-CAM++ the distance from zero below which a denominator counts as zero.
    check_bounds("eps" if kind == PLUS_PLUS else "clamp", clamp, eps)


def _fake(
    activations: Tensor,
    gradients: Tensor,
    score: Tensor | None,
    kind: int,
    height: int,
    width: int,
    clamp: float,
    eps: float,
) -> Triple:
    _check(activations, gradients, score, kind, height, width, clamp, eps)
    batch, channels, *small = activations.shape
    return (
        activations.new_empty((batch, 1, height, width), dtype=torch.float32),
        activations.new_empty((batch, 0 if by_element(kind) else channels), dtype=torch.float32),
        activations.new_empty((batch, 1, *small), dtype=torch.float32),
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


def _reference(
    activations: Tensor,
    gradients: Tensor,
    score: Tensor | None,
    kind: int,
    height: int,
    width: int,
    clamp: float,
    eps: float,
) -> Triple:
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


register(
    "grad_cam_backward",
    "(Tensor grad, Tensor weights, Tensor coarse, int kind, float clamp, float eps,"
    " bool channels_last, ScalarType dtype) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="a class activation map",
)
_op = register(
    "grad_cam",
    "(Tensor activations, Tensor gradients, Tensor? score, int kind, SymInt height,"
    " SymInt width, float clamp, float eps) -> (Tensor map, Tensor weights, Tensor coarse)",
    fake=_fake,
    reference=_reference,
    gradients={
        # From kind 2 on every activation has a weight of its own: its gradient.
        "activations": "grad_cam_backward(grad_map, gradients if kind >= 2 else weights, coarse,"
        " kind, clamp, eps, is_channels_last(activations), dtype_of(activations))"
    },
)


def compute_map(
    plain: Callable[[], Tensor],
    kind: int,
    activations: Tensor,
    gradients: Tensor,
    score: Tensor | None,
    size: tuple[int, int],
    clamp: float,
    eps: float,
    grid: tuple[int, int] | None,
) -> Tensor:
    """Calls the op of the maps, or the reference, on the arguments of a public function."""
    size = check_size(size)
    images = kernel_inputs(activations, gradients, grid)
    given: tuple[Any, ...] = (activations, gradients)
    if score is not None:
        given += (score,)
        if isinstance(score, Tensor) and score.is_floating_point():
            score = score.float()
    arguments = (*images, score, kind, *size, clamp, eps)
    op = _op.on(*given)
    if op is None or bool in (type(clamp), type(eps)):
        _op.check(*arguments)
        return plain()
    try:
        result: Tensor = op(*arguments)[0]
    except Exception as error:
        _op.refuse(error, *arguments)
    return result


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

    With the mean of a channel's gradient over its positions:

        weight_c = max(mean(gradient_c), clamp)
        S = resize(relu(sum_c weight_c * activation_c))
        map = (S - min(S)) / (max(S) - min(S) + eps)        for each image

    `clamp=None` leaves the weights as they are, which is the map of the Grad-CAM paper. Resizing is
    bilinear, corners not aligned. A map whose spread is below 1e-6 of its maximum is all zero with
    zero gradient: stretching it would show rounding noise.

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
        overriding: Tensor = overridden(grad_cam, locals())
        return overriding
    return compute_map(
        lambda: _plain(activations, gradients, size, clamp=clamp, eps=eps, grid=grid),
        GRAD_CAM,
        activations,
        gradients,
        None,
        size,
        least_weight(clamp),
        eps,
        grid,
    )
