"""A learned grid after float32 arithmetic that backends round differently."""

from typing import NamedTuple

import torch

from synq_fast.testing.case import Tolerance

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
    """

    turned: torch.Tensor
    entered: torch.Tensor
    step: float
    zero_point: float

    @property
    def value(self) -> torch.Tensor:
        """The unit of the quantized values."""
        return self.turned * (1.001 * self.step)

    def sums(self, error: float) -> tuple[float, float]:
        """Returns the units of the sums for scale and zero point, of values within `error`."""
        count = self.turned.numel()
        rounding = (3e-7 * (8 + abs(self.zero_point)) * self.step + error) * self.step
        # A code that turns changes its term by a step, one that enters the grid adds it.
        turned, entered = int(self.turned.sum()), int(self.entered.sum())
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
