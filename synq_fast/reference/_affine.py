"""The affine quantizer's arithmetic, shared by the reference ops.

Everything is float32, each operation rounded on its own; kernels reproduce it bit for bit.
"""

from typing import Any

import torch

MINIMUM_WIDTH = 1e-8


def as_range(value: torch.Tensor | float, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Returns a range bound as a float32 tensor of shape `()`, or `(C,)` along `axis`."""
    shape = () if axis is None else (x.shape[axis],)
    bound = torch.as_tensor(value, dtype=torch.float32, device=x.device)
    return bound.reshape(shape) if bound.numel() == 1 and axis is None else bound.expand(shape)


def along_axis(values: torch.Tensor, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Views per-channel values so that they broadcast over `x`."""
    if axis is None:
        return values
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def scale_and_zero_point(
    range_min: torch.Tensor, range_max: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale (steps per unit) and the zero point (an integer held in float32).

    The scale is a reciprocal times `2^bits - 1`: one rounding away from a plain division, and what
    PyTorch computes for `int / tensor`.
    """
    width = (range_max - range_min).clamp(min=MINIMUM_WIDTH)
    scale = width.reciprocal() * (2**bits - 1)
    return scale, torch.round(scale * range_min) + 2 ** (bits - 1)


def unclamped_codes(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Returns the codes before they are clamped to the grid, half rounded to even."""
    return torch.round(scale * x.float() - zero_point)


def clamp_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Clamps to the grid `[-2^(bits-1), 2^(bits-1) - 1]`; NaN stays."""
    return codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class StraightThrough(torch.autograd.Function):
    """Takes the value of `y` and the gradient of `x`, with zeros where `outside` is true."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, outside: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns `y`."""
        ctx.save_for_backward(*(() if outside is None else (outside,)))
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Returns the incoming gradient, masked if a mask was given."""
        (gradient,) = gradients
        for outside in ctx.saved_tensors:
            gradient = gradient.masked_fill(outside, 0.0)
        return gradient, None, None


def fake_quantize_with(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
    ste: str,
) -> torch.Tensor:
    """Fake quantization over ranges that are tensors of shape `()` or `(C,)`."""
    with torch.no_grad():
        pair = scale_and_zero_point(range_min, range_max, bits)
        scale, zero_point = (along_axis(values, x, axis) for values in pair)
        codes = unclamped_codes(x, scale, zero_point)
        clamped = clamp_codes(codes, bits)
        y = ((clamped + zero_point) / scale).to(x.dtype)
        # False for NaN: there the gradient passes, as NaN does through the forward pass.
        outside = (codes != clamped) & ~codes.isnan() if ste == "clip" else None
    return StraightThrough.apply(x, y, outside)  # type: ignore[no-any-return]
