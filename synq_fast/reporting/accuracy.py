"""Accuracies of one run with what the choice of the labelled images makes uncertain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STAGES = {
    "float32": "float",
    "post-training": "calibrated",
    "reconstructed": "after blocks",
    "quantized": "last step",
    "best seen": "best seen",
}
"""What metrics call a measurement, and what a page does."""


def standard_error(percent: float, count: int) -> float:
    """Standard deviation of a share of ``count`` independent images, in points (binomial)."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / count)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of a network at one moment of a run."""

    stage: str
    """One of the values of ``STAGES``."""
    top1: float
    """In percent."""
    count: int
    """Labelled images."""
    top5: float | None = None
    loss: float | None = None
    step: int | None = None
    """Of fine-tuning, for the best that was seen."""

    @property
    def error(self) -> float:
        """Standard error of top-1 in points."""
        return standard_error(self.top1, self.count)


def accuracies(metrics: Mapping[str, Any]) -> tuple[Accuracy, ...]:
    """What a run has measured so far, in the order of its stages."""
    # The best that was seen is one of the others, or was measured between them on the same images.
    count = next((m["count"] for m in map(metrics.get, STAGES) if m and "count" in m), 0)
    return tuple(
        Accuracy(
            title,
            found["top1"],
            found.get("count", count),
            found.get("top5"),
            found.get("loss"),
            found.get("step"),
        )
        for name, title in STAGES.items()
        if (found := metrics.get(name)) and found.get("count", count)
    )
