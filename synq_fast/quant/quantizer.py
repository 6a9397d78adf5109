"""What every quantizer tells those who write its model for another runtime."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.reference._affine import affine_over
from synq_fast.reference.fake_quantize_minifloat import largest_level


class Grid(NamedTuple):
    """The numbers that a quantizer gives out: ``(code + zero_point) / scale``."""

    scale: Tensor
    """0-d, or (C,) of each output channel; float32."""
    zero_point: Tensor
    """Of the same shape; whole numbers in float32."""
    low: int
    """The smallest code."""
    high: int
    """The largest code."""


class Quantizer(Protocol):
    """Something that gives out numbers of a grid."""

    def grid(self) -> Grid:
        """As it is now."""
        ...


# A gain of zero or below would turn the range over.
SMALLEST_GAIN = 1e-3


def learned_grid(range_min: Tensor, range_max: Tensor, gain: Tensor, bits: int) -> Grid:
    """The grid of a range times a trained gain, which moves its scale and leaves its zero point."""
    fixed = grid_of(range_min, range_max, bits)
    return fixed._replace(scale=fixed.scale / gain.clamp_min(SMALLEST_GAIN))


def grid_of(range_min: Tensor, range_max: Tensor, bits: int) -> Grid:
    """The grid of a range, 0-d or (C,), in the arithmetic of the ops."""
    axis = 0 if range_min.dim() else None
    nothing = torch.empty((*range_min.shape, 0), dtype=torch.float32, device=range_min.device)
    _, scale, zero_point = ops.quantize_codes(nothing, range_min, range_max, bits, axis=axis)
    half = 2 ** (bits - 1)
    return Grid(scale, zero_point, -half, half - 1)


def minifloat_grid(range_min: Tensor, range_max: Tensor, bits: int) -> Grid:
    """The grid of small floats over a range, 0-d, as the ops find it."""
    largest = largest_level(bits)
    return Grid(*affine_over(range_min, range_max, largest, 0), 0, largest)
