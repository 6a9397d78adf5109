"""LayerCAM from given activations and gradients."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._cam import LAYER_CAM
from synq_fast.ops._overrides import overridden
from synq_fast.ops.grad_cam import compute_map
from synq_fast.reference._cam import least_weight
from synq_fast.reference.layer_cam import layer_cam as _plain


def layer_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    size: tuple[int, int],
    *,
    clamp: float | None = 1e-10,
    eps: float = 1e-10,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Computes LayerCAM maps in [0, 1] at the size of the image.

    Each activation has a weight of its own, its gradient, at least `clamp`: the map is
    `relu(sum_c max(gradient_c, clamp) * activation_c)`, resized and stretched as in `grad_cam`,
    with the same rules for flat maps and ties. It stays sharp in early layers, where one weight
    for a whole channel does not.

    The map is differentiable, once, in `activations`; the weights are constants to autograd.

    Args:
        activations: `(B, C, h, w)`, contiguous or channels_last, or tokens `(B, N, C)` with
            `grid`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        size: `(height, width)` of the map in pixels.
        clamp: Least weight, at least 0; 0 is the paper's ReLU. None keeps negative gradients,
            which is `hires_cam`.
        eps: Added to the spread, at least 0.
        grid: `(h, w)` of the tokens of a transformer, N = h * w without class tokens.

    Returns:
        Maps `(B, 1, height, width)`, float32 (float64 if an input is float64).

    Raises:
        TypeError: A tensor is not floating, or `size`, `clamp`, `eps` or `grid` has another type.
        ValueError: The shapes or devices differ, an image has no activation, the tokens do not
            fill the grid, or `size`, `clamp` or `eps` is out of bounds.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization", IEEE TIP 2021, eq. 6-8.
    """
    if has_torch_function_variadic(activations, gradients):
        overriding: torch.Tensor = overridden(layer_cam, locals())
        return overriding
    return compute_map(
        lambda: _plain(activations, gradients, size, clamp=clamp, eps=eps, grid=grid),
        LAYER_CAM,
        activations,
        gradients,
        None,
        size,
        least_weight(clamp),
        eps,
        grid,
    )
