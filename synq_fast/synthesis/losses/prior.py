"""What every image is like before a network is asked: a mean of 0 and a deviation of 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from synq_fast import ops
from synq_fast.fields import factor
from synq_fast.synthesis.losses.loss import ImageLoss, Seen


@dataclass(frozen=True)
class Prior(ImageLoss):
    """Mean 0 and standard deviation 1 of each channel of each image (ZeroQ, Genie).

    The squared distances, summed over the channels; images are in normalised space.
    """

    weight: float = factor(1.0, "factor on the squared distances, a sum over channels")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the images; deviations are unbiased."""
        mean, variance = ops.channel_moments(seen.images)
        pixels = seen.images[0, 0].numel()
        deviation = (variance * (pixels / max(1, pixels - 1))).clamp_min(1e-12).sqrt()
        return (mean.square() + (deviation - 1).square()).sum(1).mean()
