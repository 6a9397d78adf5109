"""A learned grid after float32 arithmetic that backends round differently."""

from typing import NamedTuple

import torch

from synq_fast.testing.case import Tolerance
from synq_fast.testing.cases.fake_quantize_minifloat import TOP_STEP, levels_of

# Times the units that `Undecided` gives: a code is exact unless rounding may have turned it.
VALUE = Tolerance(atol=1.0, rtol=2e-7)
GRADIENT = Tolerance(atol=1.0, rtol=2e-6)
SUM = Tolerance(atol=1.0, rtol=1e-5)
# The largest incoming gradient that the suite makes.
LARGEST = 2.0


class Undecided(NamedTuple):
    """Where rounding errors of what is quantized may turn a code.

    Attributes:
        turned: Where they may choose between two codes.
        entered: Where one of both is beyond the grid.
        step: The step of the grid.
        zero_point: Its zero point.
        apart: How far both codes are apart, in steps.
        largest: About the largest code.
    """

    turned: torch.Tensor
    entered: torch.Tensor
    step: float
    zero_point: float
    apart: torch.Tensor | float = 1.0
    largest: float = 8.0

    @property
    def value(self) -> torch.Tensor:
        """The unit of the quantized values."""
        return self.turned * (1.001 * self.step) * self.apart

    def sums(self, error: float) -> tuple[float, float]:
        """Returns the units of the sums for scale and zero point, of values within `error`."""
        count = self.turned.numel()
        rounding = (3e-7 * (self.largest + abs(self.zero_point)) * self.step + error) * self.step
        # A code that turns changes its term by a step, one that enters the grid adds it.
        turned, entered = float((self.turned * self.apart).sum()), int(self.entered.sum())
        of_scale = count * rounding + turned * self.step**2
        return LARGEST * of_scale, LARGEST * (1e-6 * count + entered) * self.step


def undecided(
    values: torch.Tensor,
    error: torch.Tensor | float,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
) -> Undecided:
    """Finds the codes that errors of `values` up to `error`, and the quantizer's own, may turn."""
    s = float(scale.double().nan_to_num(1.0))
    z = float(zero_point.double().nan_to_num(0.0).round())
    error = torch.as_tensor(error, dtype=torch.float64).nan_to_num(0.0, 0.0, 0.0)
    values = values.double().nan_to_num(0.0, 0.0, 0.0)
    position = s * values - z
    margin = s * error + 2e-7 * (abs(z) + (s * values).abs())
    low, high = -(2.0 ** (bits - 1)) - 0.5, 2.0 ** (bits - 1) - 0.5
    place = position.clamp(low, high)
    near = (place - place.floor() - 0.5).abs() <= margin
    entered = torch.minimum((position - low).abs(), (position - high).abs()) <= margin
    turned = near & (position >= low - margin) & (position <= high + margin)
    return Undecided(turned, entered & turned, 1 / s, z)


def undecided_levels(
    values: torch.Tensor,
    error: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
) -> Undecided:
    """Finds the same of levels that are small floats."""
    s = float(scale.double().nan_to_num(1.0))
    z = float(zero_point.double().nan_to_num(0.0).round())
    values = values.double().nan_to_num(0.0, 0.0, 0.0)
    position = s * values - z
    margin = s * error.nan_to_num(0.0, 0.0, 0.0) + 2e-7 * (abs(z) + (s * values).abs())
    levels = levels_of(bits).to(values.device)
    # What lies below all levels and what lies above them has a code of its own.
    levels = torch.cat([levels[:1] - 1, levels, levels[-1:] + TOP_STEP])
    middles = (levels[1:] + levels[:-1]) / 2
    upper = torch.bucketize(position.contiguous(), middles).clamp(1, len(middles) - 1)
    near = torch.where(
        (position - middles[upper - 1]).abs() < (position - middles[upper]).abs(), upper - 1, upper
    )
    turned = (position - middles[near]).abs() <= margin
    ends = (near == 0) | (near == len(middles) - 1)
    apart = levels.diff()[near]
    return Undecided(turned, turned & ends, 1 / s, z, apart, float(levels[-1]))
