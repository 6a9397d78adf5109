"""ReLU and fake quantization in one pass, by the kernels of `fake_quantize`."""

import torch

from synq_fast.kernels._layout import dense, finished, laid_out_as, output_like
from synq_fast.kernels.fake_quantize import Before, Result, launch


def relu_fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
) -> torch.Tensor:
    """Returns the quantized activations in the dtype and layout of `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    grid = range_min, range_max
    launch(x, y, grid, bits, layout, Result.VALUES, before=Before.RELU, upper=upper)
    return finished(y, x)


def relu_fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> torch.Tensor:
    """Returns `gradient` with zeros where the activation, or with `clip` the grid, clamps."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(
        x, y, (range_min, range_max), bits, layout,
        Result.CLIPPED_GRADIENT if clip else Result.GRADIENT,
        gradient=laid_out_as(gradient, x), before=Before.RELU, upper=upper,
    )  # fmt: skip
    return finished(y, x)
