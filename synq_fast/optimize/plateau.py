"""A learning rate that falls when the loss stops improving, decided on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Plateau:
    """``ReduceLROnPlateau`` (mode min, relative threshold 1e-4) without a wait for the loss.

    After more than ``patience`` steps without a new best loss the rate falls to a tenth, but not
    below the smallest one.
    """

    factor = 0.1
    threshold = 1e-4
    # torch's scheduler leaves a rate alone that would change by less.
    smallest_change = 1e-8

    def __init__(self, rate: Tensor, patience: int, smallest: float) -> None:
        """Govern ``rate``, a 0-d tensor that the optimizer reads, in place."""
        self.rate, self.patience, self.smallest = rate, patience, smallest
        self.best = torch.full_like(rate, math.inf)
        self.waited = torch.zeros_like(rate)

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Take in the loss (0-d) of one step."""
        better = loss < self.best * (1 - self.threshold)
        self.best.copy_(torch.where(better, loss, self.best))
        self.waited.copy_(torch.where(better, 0.0, self.waited + 1))
        tired = self.waited > self.patience
        lower = (self.rate * self.factor).clamp_min(self.smallest)
        lower = torch.where(self.rate - lower > self.smallest_change, lower, self.rate)
        self.rate.copy_(torch.where(tired, lower, self.rate))
        self.waited.copy_(torch.where(tired, 0.0, self.waited))

    @torch.no_grad()
    def forget(self) -> None:
        """Take the next loss for the best: it is another one's. The rate stays."""
        self.best.fill_(math.inf)
        self.waited.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that decides the next steps, the rate included."""
        return {"rate": self.rate, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state_dict``; other entries are passed over."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
