"""A distance that images of a class keep from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from synq_fast.fields import factor, number
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen, Start


@dataclass(frozen=True)
class Margin(ImageLoss):
    """Cosine distance from the class's mean feature, kept in a band (IntraQ, L_MDC).

    The mean is that of the images of earlier batches; an image of a class without any counts
    nothing.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"labels", "earlier"})

    weight: float = factor(1.0, "factor on how far the distance lies outside the band")
    low: float = number(0.05, "least cosine distance from the mean of the class", 0, 2)
    high: float = number(0.8, "largest cosine distance from the mean of the class", 0, 2)

    def begin(self, start: Start) -> tuple[Tensor, ...]:
        """The mean feature (B, D) of each image's class, and whether (B,) there is one."""
        return start.means[start.labels], (start.counts > 0).float()[start.labels]

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """Sum over images whose class has a mean, over the number of them."""
        means, known = held
        distance = 1 - functional.cosine_similarity(seen.features.float(), means, dim=1)
        outside = (self.low - distance).relu() + (distance - self.high).relu()
        return (known * outside).sum() / known.sum().clamp_min(1)
