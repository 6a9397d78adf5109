"""The affine quantizer's arithmetic, shared by the reference ops.

Everything is float32, each operation rounded on its own; kernels reproduce it bit for bit.
"""

from typing import Any

import torch

MINIMUM_WIDTH = 1e-8


def range_shape(x: torch.Tensor, axis: int | None, groups: int | None) -> tuple[int, ...]:
    """Returns the shape of ranges: `()`, `(C,)` along `axis`, or `(groups,)`."""
    return () if axis is None else (x.shape[axis] if groups is None else groups,)


def as_range(
    value: torch.Tensor | float, x: torch.Tensor, axis: int | None, groups: int | None = None
) -> torch.Tensor:
    """Returns a range bound as a float32 tensor of shape `()`, `(C,)` or `(groups,)`."""
    shape = range_shape(x, axis, groups)
    bound = torch.as_tensor(value, dtype=torch.float32, device=x.device)
    return bound.reshape(shape) if bound.numel() == 1 and axis is None else bound.expand(shape)


def along_axis(values: torch.Tensor, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Returns values per channel, or per run of channels, so that they broadcast over `x`."""
    if axis is None:
        return values
    channels = x.shape[axis]
    if values.numel() != channels:
        values = values.repeat_interleave(channels // values.numel())
    shape = [1] * x.ndim
    shape[axis] = channels
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


def symmetric_range(
    range_min: torch.Tensor, range_max: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the range around zero that spans the given one; its zero point is exactly 0.

    From `-a` to `a`, `scale * range_min` would be half a step off a whole number, and rounding
    errors would decide between the zero points 0 and 1. A minimum that lies 2^-20 further off is
    more than those errors, and too little to move a value to the next level.
    """
    largest = torch.maximum(-range_min, range_max).clamp(min=MINIMUM_WIDTH / 2)
    return -(largest * (1 + 2.0**-20)), largest


def outside(codes: torch.Tensor, clamped: torch.Tensor) -> torch.Tensor:
    """Returns where clamping changed a code; False for NaN: it passes forward and backward."""
    return (codes != clamped) & ~codes.isnan()


def clipped(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
) -> torch.Tensor:
    """Returns where `x` rounds to a code that the grid does not have."""
    pair = scale_and_zero_point(range_min, range_max, bits)
    scale, zero_point = (along_axis(values, x, axis) for values in pair)
    codes = unclamped_codes(x, scale, zero_point)
    return outside(codes, clamp_codes(codes, bits))


class StraightThrough(torch.autograd.Function):
    """Takes the value of `y` and the gradient of `x`, with zeros where `blocked` is true."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, blocked: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns `y`."""
        ctx.save_for_backward(*(() if blocked is None else (blocked,)))
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Returns the incoming gradient, masked if a mask was given."""
        (gradient,) = gradients
        for blocked in ctx.saved_tensors:
            gradient = gradient.masked_fill(blocked, 0.0)
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
        blocked = outside(codes, clamped) if ste == "clip" else None
    result: torch.Tensor = StraightThrough.apply(x, y, blocked)
    return result
