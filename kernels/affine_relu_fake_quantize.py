"""A per-channel affine map, ReLU and fake quantization in one pass."""

import torch

from synq_fast.kernels._channel_sums import launch_sums
from synq_fast.kernels._layout import dense, finished, laid_out_as, output_like
from synq_fast.kernels.fake_quantize import Before, Result, launch


def affine_relu_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    upper: float | None,
) -> torch.Tensor:
    """Returns the quantized activations in the dtype and layout of `x`."""
    x, layout = dense(x, 1)
    y = output_like(x)
    launch(
        x, y, (range_min, range_max), bits, layout, Result.VALUES,
        before=Before.AFFINE_RELU, upper=upper, affine_map=(weight, bias),
    )  # fmt: skip
    return finished(y, x)


def affine_relu_fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    upper: float | None,
    clip: bool,
    parameters: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, weight and bias; the latter empty without `parameters`."""
    x, layout = dense(x, 1)
    y = output_like(x)
    gradient = laid_out_as(gradient, x)
    grid = range_min, range_max
    if not parameters:
        launch(
            x, y, grid, bits, layout, Result.CLIPPED_GRADIENT if clip else Result.GRADIENT,
            gradient=gradient, before=Before.AFFINE_RELU, upper=upper, affine_map=(weight, bias),
        )  # fmt: skip
        return finished(y, x), weight.new_empty(0), bias.new_empty(0)
    if x.numel() == 0:
        return y, torch.zeros_like(weight), torch.zeros_like(bias)
    results = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    launch_sums(
        x, gradient, y, (weight, bias), bits, layout, results, grid=grid, upper=upper, clip=clip
    )
    return finished(y, x), *results
