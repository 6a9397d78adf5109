"""How far two models agree on images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Logits of a model beside those of the one that it should compute.

    The largest difference is no measure: a value within a rounding of the middle between two codes
    may take either, and one code more moves a logit far without moving the answer.
    """

    images: int
    top1: float
    """Share of the images with the same first class."""
    decided: float
    """The same share of the images whose first class leads by more than twice what 99 of 100
    logits differ by; of all images where none does."""
    median: float
    """Of the differences of logits, as a share of the logits' root mean square."""
    percentile_99: float
    """The same of the 99th percentile."""

    def __str__(self) -> str:
        return (
            f"{100 * self.top1:.2f} % of {self.images} images agree ({100 * self.decided:.2f} % of "
            f"those that are not near a tie); logits differ by "
            f"{self.median:.1e} (median), {self.percentile_99:.1e} (99th percentile)"
        )


def agreement(expected: Tensor, found: Tensor) -> Agreement:
    """Compare logits (B, classes)."""
    size = expected.double().square().mean().sqrt()
    spread = float(size.clamp_min(torch.finfo(torch.float32).tiny))
    difference = (expected.double() - found.double()).abs().flatten() / spread
    same = expected.argmax(1) == found.argmax(1)
    ranked = difference.nan_to_num(math.inf).sort().values
    last = len(ranked) - 1
    percentile = float(ranked[math.ceil(0.99 * last)])
    first, second = expected.double().topk(2).values.unbind(1)
    decided = (first - second) / spread > 2 * percentile
    counted = same[decided] if bool(decided.any()) else same
    return Agreement(
        len(expected),
        float(same.double().mean()),
        float(counted.double().mean()),
        float(ranked[last // 2]),
        percentile,
    )
