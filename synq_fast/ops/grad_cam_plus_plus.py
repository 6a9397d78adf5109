"""Grad-CAM++ from given activations, gradients and scores."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._cam import PLUS_PLUS
from synq_fast.ops._overrides import overridden
from synq_fast.ops.grad_cam import compute_map
from synq_fast.reference.grad_cam_plus_plus import grad_cam_plus_plus as _plain


def grad_cam_plus_plus(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    score: torch.Tensor,
    size: tuple[int, int],
    *,
    eps: float = 1e-7,
    grid: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Computes Grad-CAM++ maps in [0, 1] at the size of the image.

    With A the activations of a channel, g its gradients and S the score, the weight of the channel
    is `sum(alpha * relu(exp(S) * g))` with `alpha = g^2 / (2 g^2 + sum(A) * g^3)`: the sum of A
    runs over the positions, g is the gradient at the position. A denominator of zero counts as
    one. From the weights on, the map is made as in `grad_cam` with `eps=0`, with the same rule for
    flat maps. exp(S) is a positive factor of the whole map, which the stretching removes.

    The weights are computed with alpha as `1 / (2 + sum(A) * g)`, so gradients of any scale that
    float32 holds count. The map does depend on that scale, through alpha.

    The map is differentiable, once, in `activations`; the weights are constants to autograd.

    Args:
        activations: `(B, C, h, w)`, contiguous or channels_last, or tokens `(B, N, C)` with
            `grid`; float16, bfloat16, float32 or float64.
        gradients: Gradient of the class score in the activations, same shape.
        score: Class score of each image, a logit, `(B,)`; as its exponential drops out, only a
            NaN shows in the map.
        size: `(height, width)` of the map in pixels.
        eps: A denominator of alpha below this in magnitude, in units of g^2, counts as zero; at
            least 0. The default is the rounding error of the denominator in float32.
        grid: `(h, w)` of the tokens of a transformer, N = h * w without class tokens.

    Returns:
        Maps `(B, 1, height, width)`, float32 (float64 if an input is float64).

    Raises:
        TypeError: A tensor is not floating, or `size`, `eps` or `grid` has another type.
        ValueError: The shapes or devices differ, an image has no activation, the tokens do not
            fill the grid, or `size` or `eps` is out of bounds.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Chattopadhay et al., "Grad-CAM++", WACV 2018, eq. 19; the rule for zero is that of the
    authors' code. The published SynQ code has `sum(A * g^3) + eps` in the denominator instead.
    """
    if has_torch_function_variadic(activations, gradients, score):
        overriding: torch.Tensor = overridden(grad_cam_plus_plus, locals())
        return overriding
    return compute_map(
        lambda: _plain(activations, gradients, score, size, eps=eps, grid=grid),
        PLUS_PLUS,
        activations,
        gradients,
        score,
        size,
        eps,
        0.0,
        grid,
    )
