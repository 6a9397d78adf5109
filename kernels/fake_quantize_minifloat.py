"""Fake quantization to small floats, and its clipped straight-through gradient."""

import torch

from synq_fast.kernels._layout import dense, finished, laid_out_as, output_like
from synq_fast.kernels.fake_quantize import Result, launch


def fake_quantize_minifloat(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
) -> torch.Tensor:
    """Returns `x` rounded to 2^bits small floats over the given range, laid out as `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(x, y, (range_min, range_max), bits, layout, Result.VALUES, minifloat=True)
    return finished(y, x)


def fake_quantize_minifloat_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
) -> torch.Tensor:
    """Returns `gradient` with zeros where `x` was clipped."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(
        x, y, (range_min, range_max), bits, layout, Result.CLIPPED_GRADIENT,
        gradient=laid_out_as(gradient, x), minifloat=True,
    )  # fmt: skip
    return finished(y, x)
