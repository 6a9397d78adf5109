"""HiResCAM from given activations and gradients."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._cam import HIRES_CAM
from synq_fast.ops._overrides import overridden
from synq_fast.ops.grad_cam import compute_map
from synq_fast.reference.hires_cam import hires_cam as _plain


def hires_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Computes HiResCAM maps in [0, 1] at the size of the image.

    The map is `relu(sum_c gradient_c * activation_c)`, element by element, resized and stretched
    as in `grad_cam`, with the same rules for flat maps and ties. Negative gradients count, so
    there is no least weight to choose.

    The map is differentiable, once, in `activations`; the gradients are constants to autograd.

    Args:
        activations: `(B, C, h, w)`, contiguous or channels_last, or tokens `(B, N, C)` with
            `grid`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        size: `(height, width)` of the map in pixels.
        eps: Added to the spread, at least 0.
        grid: `(h, w)` of the tokens of a transformer, N = h * w without class tokens.

    Returns:
        Maps `(B, 1, height, width)`, float32 (float64 if an input is float64).

    Raises:
        TypeError: A tensor is not floating, or `size`, `eps` or `grid` has another type.
        ValueError: The shapes or devices differ, an image has no activation, the tokens do not
            fill the grid, or `size` or `eps` is out of bounds.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks", arXiv 2011.08891, eq. 4; the ReLU is that of Grad-CAM.
    """
    if has_torch_function_variadic(activations, gradients):
        overriding: torch.Tensor = overridden(hires_cam, locals())
        return overriding
    return compute_map(
        lambda: _plain(activations, gradients, size, eps=eps, grid=grid),
        HIRES_CAM,
        activations,
        gradients,
        None,
        size,
        0.0,
        eps,
        grid,
    )
