"""Fake quantization over a learned grid."""

from typing import Any

import torch

from synq_fast.reference._affine import along_axis, as_range, clamp_codes, outside, unclamped_codes
from synq_fast.reference._forward_mode import in_forward_mode
from synq_fast.reference._philox import as_seed, kept
from synq_fast.reference.fake_quantize_minifloat import largest_level, unclamped_levels


def whole(zero_point: torch.Tensor) -> torch.Tensor:
    """Rounds half to even; zero has no sign."""
    return torch.round(zero_point) + 0.0


def codes_of(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, bits: int, minifloat: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes, or levels of small floats, before and after they are clamped to the grid."""
    if minifloat:
        levels = unclamped_levels(x, scale, offset, bits)
        return levels, levels.clamp(0.0, float(largest_level(bits)))
    codes = unclamped_codes(x, scale, offset)
    return codes, clamp_codes(codes, bits)


def learned_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    gradient_scale: float,
    chosen: torch.Tensor | None = None,
    *,
    minifloat: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x` and of a scale and a zero point that broadcast over it.

    Where `chosen` is false, nothing was quantized.
    """
    gradient = gradient.float()
    offset = whole(zero_point)
    codes, clamped = codes_of(x, scale, offset, bits, minifloat)
    y = (clamped + offset) / scale
    clipped = outside(codes, clamped)
    of_scale = gradient * torch.where(clipped, -y, x.float() - y) / scale
    if chosen is not None:
        clipped = clipped & chosen
        of_scale = torch.where(chosen, of_scale, 0.0)
    of_zero = torch.where(clipped, gradient, 0.0)
    return (
        gradient.masked_fill(clipped, 0.0).to(x.dtype),
        of_scale.sum_to_size(scale.shape) * gradient_scale,
        of_zero.sum_to_size(scale.shape) / scale * gradient_scale,
    )


class LearnedGrid(torch.autograd.Function):
    """The value and the straight-through gradients, for parameters that broadcast over `x`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        seed: torch.Tensor | None,
        bits: int,
        gradient_scale: float,
        keep: float,
        offset: int,
        minifloat: bool,
    ) -> torch.Tensor:
        """Returns the quantized values in float32, and with a seed some of `x` as they are."""
        zero = whole(zero_point)
        _, codes = codes_of(x, scale, zero, bits, minifloat)
        y = (codes + zero) / scale
        return y if seed is None else torch.where(kept(x, seed, keep, offset), y, x.float())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Saves what the derivatives need."""
        tensors = inputs[:4]
        ctx.bits, ctx.gradient_scale, ctx.keep, ctx.offset, ctx.minifloat = inputs[4:]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Returns the gradients of `x`, scale and zero point."""
        x, scale, zero_point, seed = ctx.saved_tensors
        chosen = None if seed is None else kept(x, seed, ctx.keep, ctx.offset)
        results = learned_gradients(
            gradients[0],
            x,
            scale,
            zero_point,
            ctx.bits,
            ctx.gradient_scale,
            chosen,
            minifloat=ctx.minifloat,
        )
        return *results, None, None, None, None, None, None


class _LearnedGridForward(LearnedGrid):
    """The same with a tangent: Dynamo cannot trace a function that has one."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Saves what the derivatives of both directions need."""
        LearnedGrid.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        """Returns the tangent of the result: what `learned_gradients` is the adjoint of."""
        x, scale, zero_point, seed = ctx.saved_tensors
        of_x, of_scale, of_zero = tangents[:3]
        offset = whole(zero_point)
        codes, clamped = codes_of(x, scale, offset, ctx.bits, ctx.minifloat)
        y = (clamped + offset) / scale
        clipped = outside(codes, clamped)
        by_scale = torch.where(clipped, -y, x.float() - y) * of_scale
        by_zero = clipped.float() * of_zero
        parameters = (by_scale + by_zero) / scale * ctx.gradient_scale
        tangent: torch.Tensor = parameters + of_x.float().masked_fill(clipped, 0.0)
        if seed is not None:
            tangent = torch.where(kept(x, seed, ctx.keep, ctx.offset), tangent, of_x.float())
        return tangent


def fake_quantize_learned(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    gradient_scale: float = 1.0,
    keep: float = 1.0,
    seed: torch.Tensor | int | None = None,
    offset: int = 0,
) -> torch.Tensor:
    """Rounds `x` to a learned grid; see `synq_fast.ops.fake_quantize_learned`."""
    return on_learned_grid(
        x,
        scale,
        zero_point,
        bits,
        axis=axis,
        gradient_scale=gradient_scale,
        keep=keep,
        seed=seed,
        offset=offset,
    )


def on_learned_grid(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    gradient_scale: float = 1.0,
    keep: float = 1.0,
    seed: torch.Tensor | int | None = None,
    offset: int = 0,
    minifloat: bool = False,
) -> torch.Tensor:
    """Rounds `x` to a learned grid of equal steps or of small floats."""
    pair = (as_range(value, x, axis) for value in (scale, zero_point))
    scale, zero_point = (along_axis(value, x, axis) for value in pair)
    # Inside the function a conversion that changes nothing would lose the gradient when compiled.
    function = _LearnedGridForward if in_forward_mode() else LearnedGrid
    drawn = None if keep == 1 else as_seed(seed, x.device)
    y: torch.Tensor = function.apply(
        x, scale, zero_point, drawn, bits, gradient_scale, keep, offset, minifloat
    )
    return y.to(x.dtype)
