"""The quantizer of values with a long tail over small floating-point numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.errors import ModelError
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.observers import build_observer
from synq_fast.quant.quantizer import Grid, minifloat_grid

LEAST_BITS = 3
"""An exponent has three bits."""
WIDEST = 5
"""Up to so many bits a recipe's "auto" takes them: above, equal steps lose little, and files have a
form for them."""
SHARES = tuple(2 ** (n / 4) for n in range(4, -13, -1))
"""Of the greatest value: where the largest level is tried."""
ZEROS = 8
"""So many whole numbers are tried for what zero is moved by, from 0, further apart at more bits."""


class MinifloatQuantizer(ActivationQuantizer):
    """Fake-quantizes to unsigned floats of three exponent bits, moved by a whole number of steps.

    What GELU gives is mostly near its least value, with few large ones: a uniform grid of few bits
    that holds these rounds the rest to nothing. The range is not trained. Where nothing fits it to
    what is made of the values it holds all of them, for the range of least error of a uniform grid
    would cut the tail off.
    """

    small_floats = True

    def __init__(self, bits: int, *, policy: str = "minmax", shrink: float = 1.0) -> None:
        """Prepare a quantizer; arguments as those of ``ActivationQuantizer``."""
        super().__init__(bits, policy=policy, shrink=shrink, ste="clip")

    def start_observing(self) -> None:
        """Begin a new range: a moving average of the extremes if the policy says so, or they."""
        policy = "ema" if self.policy == "ema" else "minmax"
        self.observer = build_observer(policy, self.bits, self.range_min.device)

    def quantized(self, x: Tensor) -> Tensor:
        """``x`` on the levels, whatever is observed or let through."""
        return self.dropped(self.on_range(x, self.range_min, self.range_max), x)

    def on_range(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``x`` on the levels of a range."""
        return ops.fake_quantize_minifloat(x, low, high, self.bits, ste="clip")

    def candidates(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges (N,) whose least level is a whole number of steps below zero."""
        largest = float(_whole_levels(self.bits)[-1])
        shares = torch.tensor(SHARES, dtype=torch.float32, device=high.device)
        apart = 2.0 ** max(0, self.bits - LEAST_BITS - 1)
        zeros = apart * torch.arange(ZEROS, dtype=torch.float32, device=high.device)
        steps = (high.clamp_min(0.0) * shares).view(-1, 1) / (largest - zeros)
        return (-zeros * steps).flatten(), ((largest - zeros) * steps).flatten()

    def learned(self, shape: Sequence[int]) -> tuple[Grid, float]:
        """Scale and zero point of the range, as ops take them with its levels; not trained."""
        return minifloat_grid(self.range_min, self.range_max, self.bits), 1.0

    @property
    def joins(self) -> bool:
        """With the function before it."""
        return True

    def quantizes_all(self, x: Tensor) -> bool:
        """Whether nothing is observed, left out or passed."""
        return self.keep == 1 and super().is_grid(x, trained=True)

    def is_grid(self, x: Tensor, trained: bool) -> bool:
        """No op with a uniform grid does what this does."""
        return False

    def grid(self) -> Grid:
        """Refuse: no uniform grid holds floating-point numbers."""
        raise ModelError(
            "what GELU gives is rounded to small floats, which integer runtimes do not have; "
            "quantize with quantization.after_gelu = uniform"
        )

    def levels(self) -> Tensor:
        """The numbers that it gives out, (L,) float64, in order."""
        levels = _whole_levels(self.bits)
        low, high = self.range_min.double().cpu(), self.range_max.double().cpu()
        scale = levels[-1] / (high - low).clamp_min(1e-8)
        return (levels + torch.round(scale * low)) / scale

    def ends(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value that is rounded to a level less than half a step away; 0-d."""
        levels = self.levels().to(self.range_min)
        below, above = (levels[1] - levels[0]) / 2, (levels[-1] - levels[-2]) / 2
        return levels[0] - below, levels[-1] + above

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, levels=floats of three exponent bits"


def _whole_levels(bits: int) -> Tensor:
    """The levels in steps, before they are moved, (L,) float64."""
    codes = torch.arange(2**bits, dtype=torch.int64, device="cpu")
    ones = 2 ** (bits - LEAST_BITS)
    exponent, mantissa = codes // ones, codes % ones
    normal = (ones + mantissa) * 2 ** (exponent - 1).clamp_min(0)
    return torch.where(exponent == 0, mantissa, normal).double()
