"""The quantizer of probabilities over powers of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.errors import ModelError
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.quantizer import Grid

WIDEST = 5
"""Up to so many bits powers of two err less than a uniform grid on attention's probabilities."""


class LogQuantizer(ActivationQuantizer):
    """Fake-quantizes probabilities to a largest level times powers of two, and to zero.

    The largest level is the end of the range, and is not trained. Most probabilities are small, and
    a uniform grid that holds the few large ones rounds them to nothing (FQ-ViT, IJCAI 2022).
    """

    spacing = "log2"
    from_zero = True

    def __init__(
        self, bits: int, *, policy: str = "minmax", shrink: float = 1.0, heads: int | None = None
    ) -> None:
        """Prepare a quantizer; arguments as those of ``ActivationQuantizer``."""
        super().__init__(bits, policy=policy, shrink=shrink, ste="clip", heads=heads)

    def quantized(self, x: Tensor) -> Tensor:
        """``x`` on the levels, whatever is observed or let through."""
        return self.dropped(self.rounded(x, self.range_max), x)

    def rounded(self, x: Tensor, end: Tensor) -> Tensor:
        """``x`` on the levels below an end, 0-d or (H,)."""
        return ops.fake_quantize_log(x, end, self.bits, axis=1 if end.dim() else None)

    def of_probabilities(self, shape: Sequence[int]) -> tuple[Tensor, float]:
        """The largest level; it has no gradient."""
        return self.range_max, 1.0

    @property
    def joins(self) -> bool:
        """With the softmax."""
        return True

    def quantizes_all(self, x: Tensor) -> bool:
        """Whether nothing is observed, left out or passed."""
        return self.is_grid(x, trained=False)

    def is_grid(self, x: Tensor, trained: bool) -> bool:
        """Whether an op with powers of two does what this does now to ``x``."""
        return self.keep == 1 and super().is_grid(x, trained)

    def grid(self) -> Grid:
        """Refuse: no uniform grid holds powers of two."""
        raise ModelError(
            "probabilities are rounded to powers of two, which integer runtimes do not have; "
            "quantize with quantization.probabilities = uniform"
        )

    def levels(self) -> Tensor:
        """The numbers that it gives out, (L,) float64, in order: of all heads together."""
        powers = torch.exp2(-torch.arange(2**self.bits - 1, dtype=torch.float64, device="cpu"))
        levels: Tensor = (self.range_max.double().cpu().view(-1, 1) * powers).unique()
        return torch.cat([levels.new_zeros(1), levels])

    def ends(self) -> tuple[Tensor, Tensor]:
        """Zero, and what is just rounded to the largest level; 0-d or (H,)."""
        return torch.zeros_like(self.range_max), self.range_max * 2**0.5

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, levels=powers of two"
