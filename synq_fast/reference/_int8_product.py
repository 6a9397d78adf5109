"""Products of int8 codes and what follows them, in plain integers: what frozen layers compute."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Whole numbers from ``low`` to ``high`` in steps of ``scale``.

    Codes are the numbers less ``offset``, so that they fit int8.
    """

    scale: float
    low: int
    high: int
    offset: int

    @classmethod
    def of(cls, scale: float, zero_point: int, highest: int) -> Grid:
        """The grid ``(code - zero_point) * scale`` with codes from 0 to ``highest`` <= 255.

        Numbers that fit int8 are their own codes.
        """
        low, high = -zero_point, highest - zero_point
        return cls(scale, low, high, 0 if low >= -128 and high <= 127 else low + 128)

    def rectified(self, bound: float | None) -> Grid:
        """The part of the grid that is left behind a ReLU that ends at ``bound``; None: all of it.

        Rounding keeps the order of numbers, so it does not matter which of them comes first.
        """
        if bound is None:
            return self
        end = torch.round(torch.tensor(bound) / torch.tensor(self.scale)).clamp(max=self.high)
        return self._replace(low=max(self.low, 0), high=int(end))


def int8_codes(x: Tensor, grid: Grid) -> Tensor:
    """Codes (int8) of the shape of ``x``: divided, rounded half to even; NaN is the number 0."""
    # A tensor: GPUs multiply by the reciprocal of a plain number.
    scale = torch.tensor(grid.scale, dtype=torch.float32, device=x.device)
    numbers = torch.round(x.float().nan_to_num(0.0, inf, -inf) / scale)
    return (numbers.clamp(grid.low, grid.high) - grid.offset).to(torch.int8)


def int8_numbers(codes: Tensor, grid: Grid) -> Tensor:
    """The float32 numbers that codes stand for."""
    return codes.float().add_(grid.offset).mul_(grid.scale)


def int8_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    grid: Grid | None = None,
    added: Tensor | None = None,
    added_grid: Grid | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``(x @ weight.T + bias) * multiplier``, the sums whole and rounded once to be scaled.

    Args:
        x: (M, K) int8.
        weight: (N, K) int8.
        bias: (N,) int32.
        multiplier: (N,) float32.
        grid: what the result is put on, behind a ReLU ``rectified``; None: floating point.
        added: (M, N) codes on ``added_grid``, added before the result is put on its grid.
        added_grid: of ``added``.
        dtype: of a result in floating point.

    Returns:
        (M, N), int8 or ``dtype``.
    """
    # Whole numbers below 2^53: products of double are exact in any order, on any device.
    sums = (x.double() @ weight.double().T).long() + bias
    y = sums.float() * multiplier
    if added is not None and added_grid is not None:
        y = y + int8_numbers(added, added_grid)
    return y.to(dtype) if grid is None else int8_codes(y, grid)
