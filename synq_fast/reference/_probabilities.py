"""The two grids of probabilities: equal steps from zero, and powers of two."""

import torch

from synq_fast.reference._forward_mode import constant
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned, learned_gradients
from synq_fast.reference.fake_quantize_log import fake_quantize_log, log_gradients

Tensor = torch.Tensor


def rounded(
    values: Tensor,
    scale: Tensor | float,
    bits: int,
    grid: str,
    *,
    axis: int | None = None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """Returns probabilities on `grid`, "uniform" or "log2", whose scale is trained."""
    if grid == "log2":
        if isinstance(scale, Tensor):
            fixed = constant(scale)
            # Nothing in value: it carries the derivative. An infinite scale has none.
            scale = fixed + gradient_scale * (scale - fixed).nan_to_num(0.0)
        return fake_quantize_log(values, scale, bits, axis=axis)
    half = float(2 ** (bits - 1))
    # The lowest code stands for zero.
    zero_point = scale.new_full(scale.shape, half) if isinstance(scale, Tensor) else half
    return fake_quantize_learned(
        values, scale, zero_point, bits, axis=axis, gradient_scale=gradient_scale
    )


def gradients(
    gradient: Tensor, values: Tensor, scale: Tensor, bits: int, log2: bool, gradient_scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of probabilities and of scales that broadcast over them."""
    if log2:
        of_values, of_scale = log_gradients(gradient, values, scale, bits)
        return of_values, of_scale * gradient_scale
    zero_point = scale.new_full(scale.shape, 2 ** (bits - 1))
    return learned_gradients(gradient, values, scale, zero_point, bits, gradient_scale)[:2]
