"""Losses on the statistics that BatchNorm layers have stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops
from synq_fast.fields import factor
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen, Targets


@dataclass(frozen=True)
class Statistics(ImageLoss):
    """Distance of means and variances from the stored ones (ZeroQ, arXiv 2001.00281, eq. 2).

    The mean over the layers of ``MSE(mean) + MSE(variance)`` of each BatchNorm's input.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"norms"})

    weight: float = factor(1.0, "factor on the distance from the BatchNorm statistics")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """Compare the batch as a whole with the running statistics."""
        return statistics_distance(seen.norms, seen.running)


@dataclass(frozen=True)
class Deviations(ImageLoss):
    """Distance of means and standard deviations from the stored ones (Genie, arXiv 2212.04780).

    The sum over the layers of ``MSE(mean) + MSE(deviation)``, the deviation unbiased, and the
    stored one ``sqrt(variance + 1e-6)``.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"norms"})

    weight: float = factor(1.0, "factor on the distance, which is a sum over the layers")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """Compare the batch as a whole with the running statistics."""
        terms = []
        for x, (mean, variance) in zip(seen.norms, seen.running, strict=True):
            own_mean, own_variance = _pooled(x)
            count = x.numel() // x.shape[1]
            deviation = (own_variance * (count / max(1, count - 1))).clamp_min(1e-12).sqrt()
            terms.append(functional.mse_loss(own_mean, mean))
            terms.append(functional.mse_loss(deviation, (variance + 1e-6).sqrt()))
        return torch.stack(terms).sum()


def _pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) over images and pixels, from those of every image."""
    means, variances = ops.channel_moments(x)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def statistics_distance(
    inputs: Sequence[Tensor], targets: Targets, weights: tuple[float, ...] | None = None
) -> Tensor:
    """Mean over layers of the weighted mean and variance losses, a scalar.

    Args:
        inputs: BatchNorm inputs (B, C, H, W).
        targets: per layer (mean, variance).
        weights: one factor per layer; a layer of weight 0 is skipped.
    """
    means, variances = zip(*targets, strict=True)
    return ops.bn_statistics_losses(inputs, means, variances, weights)


def layer_switch(layers: int) -> int:
    """The first deep layer of TexQ's depth rule: ``floor((N + 2) / 2) - 2``, at least 0."""
    return max(0, (layers + 2) // 2 - 2)


def layered_weights(layers: int, shallow: float, deep: float) -> tuple[float, ...]:
    """Loss weights of ``layers`` BatchNorms: ``shallow`` before the switch, ``deep`` after."""
    switch = layer_switch(layers)
    return (shallow,) * switch + (deep,) * (layers - switch)
