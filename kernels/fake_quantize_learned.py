"""Fake quantization over a learned grid, and its three gradients."""

import torch

from synq_fast.kernels._channel_sums import launch_sums
from synq_fast.kernels._layout import dense, finished, laid_out_as, output_like
from synq_fast.kernels.fake_quantize import Result, launch


def fake_quantize_learned(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int, axis: int | None
) -> torch.Tensor:
    """Returns `x` rounded to 2^bits levels of the given grid, in the dtype and layout of `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(x, y, (scale, zero_point), bits, layout, Result.VALUES, learned=True)
    return finished(y, x)


def fake_quantize_learned_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, scale and zero point."""
    x, layout = dense(x, axis)
    y = output_like(x)
    if x.numel() == 0:
        return y, torch.zeros_like(scale), torch.zeros_like(zero_point)
    of_scale, of_zero_point = scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)
    launch_sums(
        x, laid_out_as(gradient, x), y, (scale, zero_point), bits, layout,
        (of_scale, of_zero_point), gradient_scale=gradient_scale,
    )  # fmt: skip
    return finished(y, x), of_scale, of_zero_point
