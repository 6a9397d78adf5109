"""Images on which the quantized network and the teacher differ, but not too much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.fields import factor, number
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen


@dataclass(frozen=True)
class Disagreement(ImageLoss):
    """AdaDFQ's game between generator and quantized network (CVPR 2023).

    The entropy of ``softmax(t - q)``, scaled to 0..1 over the batch, stays within a band; besides,
    the label is likely under ``softmax(t - q)`` and under ``softmax(t + q)``.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"labels", "student"})

    weight: float = factor(1.0, "factor on the three together")
    low: float = number(0.1, "least scaled entropy of the difference of the logits", 0, 1)
    high: float = number(0.8, "largest scaled entropy of the difference of the logits", 0, 1)
    difference: float = factor(0.2, "factor on the label's cross entropy under the difference")
    agreement: float = factor(0.1, "factor on the label's cross entropy under the sum")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The sum of the three means over the images."""
        assert seen.student is not None
        t, q = seen.logits.float(), seen.student.float()
        apart, together = torch.log_softmax(t - q, 1), torch.log_softmax(t + q, 1)
        entropy = -(apart.exp() * apart).sum(1)
        least = entropy.min()
        room = (math.log(t.shape[1]) - least).clamp_min(1e-8)
        scaled = (entropy - least) / room
        outside = (self.low - scaled).relu().mean() + (scaled - self.high).relu().mean()
        return (
            outside
            + self.difference * functional.nll_loss(apart, seen.labels)
            + self.agreement * functional.nll_loss(together, seen.labels)
        )
