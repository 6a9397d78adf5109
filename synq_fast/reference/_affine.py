"""The affine quantizer's arithmetic, shared by the reference ops.

Everything is float32, each operation rounded on its own; kernels reproduce it bit for bit.
"""

from typing import Any

import torch

from synq_fast.reference._forward_mode import in_forward_mode

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


def affine_over(
    range_min: torch.Tensor, range_max: torch.Tensor, steps: int, offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale (steps per unit) and the zero point (an integer held in float32).

    The range spans so many steps, and its minimum has the code `-offset`. The scale is a reciprocal
    times the steps: one rounding away from a plain division, and what PyTorch computes for
    `int / tensor`. Both are of half the width, whose bits are the same, because the whole one
    overflows where a range spans more than the largest float32.
    """
    half = (range_max * 0.5 - range_min * 0.5).clamp(min=MINIMUM_WIDTH / 2)
    scale = half.reciprocal() * (steps / 2)
    return scale, torch.round(scale * range_min) + offset


def scale_and_zero_point(
    range_min: torch.Tensor, range_max: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scale and zero point of the grid of `2^bits` codes."""
    return affine_over(range_min, range_max, 2**bits - 1, 2 ** (bits - 1))


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
    """Takes the value of `y` and the derivative of `x`, with zeros where `blocked` is true."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor, blocked: torch.Tensor | None) -> torch.Tensor:
        """Returns `y`."""
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Saves the mask, if one was given."""
        ctx.save_for_backward(*(() if inputs[2] is None else (inputs[2],)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Returns the incoming gradient, masked if a mask was given."""
        (gradient,) = gradients
        for blocked in ctx.saved_tensors:
            gradient = gradient.masked_fill(blocked, 0.0)
        return gradient, None, None


class _StraightThroughForward(StraightThrough):
    """The same with a tangent: Dynamo cannot trace a function that has one."""

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor, blocked: torch.Tensor | None) -> torch.Tensor:
        """Returns `y`; a view of it could not have the tangent of `x`."""
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Saves the mask for both directions."""
        StraightThrough.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*(() if inputs[2] is None else (inputs[2],)))

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        """Returns the tangent of `x`, masked if a mask was given."""
        tangent = tangents[0]
        for blocked in ctx.saved_tensors:
            tangent = tangent.masked_fill(blocked, 0.0)
        return tangent.view_as(tangent)


def straight_through(
    x: torch.Tensor, y: torch.Tensor, blocked: torch.Tensor | None
) -> torch.Tensor:
    """Returns `y` with the derivative of `x` in either mode, or zeros where `blocked` is true."""
    function = _StraightThroughForward if in_forward_mode() else StraightThrough
    result: torch.Tensor = function.apply(x, y, blocked)
    return result


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
    return straight_through(x, y, blocked)
