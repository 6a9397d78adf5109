"""A per-channel affine map, a residual, ReLU and fake quantization in one pass."""

import torch

from synq_fast.kernels._channel_sums import launch_sums
from synq_fast.kernels._layout import dense, finished, laid_out_as, output_like
from synq_fast.kernels.fake_quantize import Before, Result, launch


def affine_relu_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    upper: float | None,
) -> torch.Tensor:
    """Returns the quantized activations in the dtype and layout of `x`."""
    x, layout = dense(x, 1)
    y = output_like(x)
    launch(
        x, y, (range_min, range_max), bits, layout, Result.VALUES, before=_before(residual),
        upper=upper, affine_map=(weight, bias), residual=_laid_out_as(residual, x),
    )  # fmt: skip
    return finished(y, x)


def affine_relu_fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    upper: float | None,
    clip: bool,
    parameters: bool,
    of_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, weight, bias and residual.

    Those of weight and bias are empty without `parameters`, the last without `of_residual`.
    """
    x, layout = dense(x, 1)
    y = output_like(x)
    before_relu = output_like(x) if of_residual else None
    gradient = laid_out_as(gradient, x)
    grid, factors = (range_min, range_max), (weight, bias)
    count = x.shape[1] if parameters else 0
    of_weight, of_bias = weight.new_zeros(count), bias.new_zeros(count)
    if parameters and x.numel() > 0:
        launch_sums(
            x, gradient, y, factors, bits, layout, (of_weight, of_bias), grid=grid, upper=upper,
            clip=clip, residual=_laid_out_as(residual, x), of_residual=before_relu,
        )  # fmt: skip
    else:
        launch(
            x, y, grid, bits, layout, Result.CLIPPED_GRADIENT if clip else Result.GRADIENT,
            gradient=gradient, before=_before(residual), upper=upper, affine_map=factors,
            residual=_laid_out_as(residual, x), of_residual=before_relu,
        )  # fmt: skip
    summand = x.new_empty(0) if before_relu is None else finished(before_relu, x)
    return finished(y, x), of_weight, of_bias, summand


def _before(residual: torch.Tensor | None) -> Before:
    return Before.AFFINE_RELU if residual is None else Before.AFFINE_RESIDUAL_RELU


def _laid_out_as(residual: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    return None if residual is None else laid_out_as(residual, x)
