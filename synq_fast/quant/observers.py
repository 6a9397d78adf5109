"""Range policies: how a static activation range is found from calibration batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.quant.full_precision import FullPrecision

_SEARCH_SAMPLES = 1 << 16


class RangeObserver(FullPrecision, ABC):
    """Follows the range of one tensor over calibration batches; ``read`` gives the result.

    Ranges are float32 on the tensor's device; nothing is copied to the host.
    """

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Take in one batch."""

    @abstractmethod
    def read(self) -> tuple[Tensor, Tensor]:
        """The range so far: (range_min, range_max), 0-d or (H,)."""


class EachHead(RangeObserver):
    """Follows every index of dimension 1 on its own: the heads of an attention."""

    def __init__(self, observers: Sequence[RangeObserver]) -> None:
        """Take an observer for each."""
        super().__init__()
        self.observers: Sequence[RangeObserver] = observers
        self.of = nn.ModuleList(observers)

    def observe(self, x: Tensor) -> None:
        """Take in one batch (B, H, ...)."""
        for observer, part in zip(self.observers, x.unbind(1), strict=True):
            observer.observe(part)

    def read(self) -> tuple[Tensor, Tensor]:
        """The ranges so far, (H,) each."""
        low, high = zip(*(observer.read() for observer in self.observers), strict=True)
        return torch.stack(low), torch.stack(high)


class WholeRange(RangeObserver):
    """One range for all of a tensor."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        """Start with an empty range."""
        super().__init__()
        self.register_buffer("low", torch.zeros((), dtype=torch.float32, device=device))
        self.register_buffer("high", torch.zeros((), dtype=torch.float32, device=device))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64, device=device))

    low: Tensor
    high: Tensor
    batches: Tensor

    def read(self) -> tuple[Tensor, Tensor]:
        """The range so far, 0-d."""
        return self.low, self.high


class EmaObserver(WholeRange):
    """Bias-corrected moving average of the batch extremes (as Adam corrects its moments)."""

    def __init__(self, beta: float = 0.9, device: torch.device | str | None = None) -> None:
        """Average over about ``1 / (1 - beta)`` batches."""
        super().__init__(device)
        self.beta = beta

    def observe(self, x: Tensor) -> None:
        """Move the average towards this batch's minimum and maximum."""
        ops.update_range(x, self.low, self.high, self.batches, self.beta)

    def read(self) -> tuple[Tensor, Tensor]:
        """The average, corrected for its start at zero."""
        return ops.read_range(self.low, self.high, self.batches, self.beta)


class MinMaxObserver(WholeRange):
    """The smallest and the largest value of all batches."""

    def observe(self, x: Tensor) -> None:
        """Widen the range to hold this batch."""
        low, high = torch.aminmax(x.detach().float())
        first = self.batches == 0
        self.low.copy_(torch.where(first, low, torch.minimum(self.low, low)))
        self.high.copy_(torch.where(first, high, torch.maximum(self.high, high)))
        self.batches += 1


class MseObserver(WholeRange):
    """The mean over batches of the range with the least quantization error (BRECQ, Genie).

    A strided sample of at most 65,536 elements of each batch is searched, which keeps calibration
    short.
    """

    def __init__(self, bits: int, device: torch.device | str | None = None) -> None:
        """Search for a quantizer of ``bits`` bits."""
        super().__init__(device)
        self.bits = bits

    def observe(self, x: Tensor) -> None:
        """Search this batch and take its best range into the mean."""
        flat = x.detach().flatten()
        low, high = ops.search_range(flat[:: _sampling_stride(flat.numel())], self.bits)
        self.batches += 1
        self.low += (low - self.low) / self.batches
        self.high += (high - self.high) / self.batches


def _sampling_stride(count: int) -> int:
    """The smallest stride that takes at most ``_SEARCH_SAMPLES`` and shares no factor with count.

    A stride that divides the width would only ever see one column, often the padded border.
    """
    stride = max(1, -(-count // _SEARCH_SAMPLES))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


def build_observer(
    policy: str, bits: int, device: torch.device | str | None, heads: int | None = None
) -> RangeObserver:
    """The observer of a recipe's ``range`` policy: ``ema``, ``minmax``, ``mse`` or ``output``.

    What ``output`` does not fit by what is made of it has the range of ``mse``.
    ``heads`` is how many ranges dimension 1 has; None: there is one in all.
    """
    if heads is not None:
        return EachHead([build_observer(policy, bits, device) for _ in range(heads)])
    if policy == "ema":
        return EmaObserver(device=device)
    if policy == "minmax":
        return MinMaxObserver(device=device)
    return MseObserver(bits, device=device)
