"""Activation functions with fake quantization over a learned grid."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from synq_fast.reference._precision import to_compute
from synq_fast.reference.fake_quantize_learned import learned_gradients, on_learned_grid

Tensor = torch.Tensor


class Activation(NamedTuple):
    """An activation function.

    Attributes:
        value: Its value, differentiable.
        slope: Its derivative. NaN stays NaN, which torch's own derivatives leave to the size.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _gelu(x: Tensor) -> Tensor:
    # Exact; torch's own gives NaN at infinity in some sizes.
    y: Tensor = x * torch.special.ndtr(x)
    return y


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(x.square() * -0.5) / math.sqrt(2 * math.pi)
    y: Tensor = torch.special.ndtr(x) + x * density
    return y


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _silu_slope(x: Tensor) -> Tensor:
    # The sigmoid at -x is 1 less that at x, of which a difference would leave few digits.
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def _hardswish(x: Tensor) -> Tensor:
    # Between the ends alone the derivative of this bound is 1, at neither of them.
    return x * (functional.hardtanh(x, -3.0, 3.0) + 3) * (1 / 6)


def _hardswish_slope(x: Tensor) -> Tensor:
    inside = x * (1 / 3) + 0.5
    return inside.masked_fill(x <= -3, 0.0).masked_fill(x >= 3, 1.0)


GELU = Activation(_gelu, _gelu_slope)
SILU = Activation(_silu, _silu_slope)
HARDSWISH = Activation(_hardswish, _hardswish_slope)


def activation_fake_quantize(
    activation: Activation,
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | float,
    bits: int,
    *,
    gradient_scale: float = 1.0,
    grid: str = "uniform",
) -> Tensor:
    """Rounds the values of an activation function to a learned grid, "uniform" or "minifloat"."""
    values = activation.value(to_compute(x))
    minifloat = grid == "minifloat"
    y = on_learned_grid(
        values, scale, zero_point, bits, gradient_scale=gradient_scale, minifloat=minifloat
    )
    return y.to(x.dtype)


def activation_fake_quantize_gradients(
    activation: Activation,
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    minifloat: bool,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of `x`, scale and zero point."""
    wide = to_compute(x)
    of_value, of_scale, of_zero = learned_gradients(
        gradient,
        activation.value(wide),
        scale,
        zero_point,
        bits,
        gradient_scale,
        minifloat=minifloat,
    )
    return (of_value * activation.slope(wide)).to(x.dtype), of_scale, of_zero
