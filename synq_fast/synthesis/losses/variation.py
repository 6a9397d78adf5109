"""Smoothness of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from synq_fast import ops
from synq_fast.fields import factor
from synq_fast.synthesis.losses.loss import ImageLoss, Seen


@dataclass(frozen=True)
class Variation(ImageLoss):
    """Total variation: the norms of the differences of neighbouring pixels (DeepInversion)."""

    weight: float = factor(
        1.0, "factor on the total variation of each image, over the root of its number of values"
    )

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the images; of white noise it is about 5.7, whatever the size."""
        root = math.sqrt(seen.images[0].numel())
        return ops.total_variation(seen.images, "image").mean() / root
