"""Images whose patches a transformer tells apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.fields import factor, number
from synq_fast.synthesis.losses.loss import Attended, ImageLoss, Reads, Seen, Start


@dataclass(frozen=True)
class Patches(ImageLoss):
    """The entropy of the similarities between patches, which real images make large (PSAQ-ViT).

    arXiv 2203.02250, eq. 5 and 6: of what each attention gives, the mean over the heads, without
    the class token and what else comes before the patches. A window counts as an image; the
    published code pools the similarities of all windows instead.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"attentions"})

    weight: float = factor(1.0, "factor on the negative entropy, a sum over the layers")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """Minus the sum over the layers of the mean over the images."""
        entropies = [
            ops.patch_similarity_entropy(_patches(attended)).mean()
            for attended in seen.attentions
            if attended.output.shape[-2] > 2
        ]
        return -torch.stack(entropies).sum()


def _patches(attended: Attended) -> Tensor:
    """The tokens (B, N, D) of the patches, from what an attention gives (..., H, N, D)."""
    tokens = attended.output.mean(-3).flatten(0, -3).float()
    return tokens[:, attended.before_patches(tokens.shape[1]) :]


@dataclass(frozen=True)
class Roughness(ImageLoss):
    """Distance of a batch's total variation from one that real images may have (PSAQ-ViT).

    The total variation is the batch's, so it grows with the root of the number of images; the
    bounds are of 32 images of 224 pixels, and scale with that root and with the side.
    """

    weight: float = factor(0.05, "factor on the distance from the total variation that is drawn")
    low: float = number(2500.0, "the least that is drawn, of 32 images of 224 pixels", 0, 1e6)
    high: float = number(3000.0, "the most", 0, 1e6)

    def begin(self, start: Start) -> tuple[Tensor, ...]:
        """Draw what the batch is to have."""
        lot = torch.rand((), generator=start.generator, dtype=torch.float32, device="cpu")
        drawn = self.low + (self.high - self.low) * lot
        return (drawn.to(start.labels.device),)

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The absolute difference."""
        (drawn,) = held
        count, _, height, width = seen.images.shape
        size = math.sqrt(count / 32) * math.sqrt(height * width) / 224
        return (ops.total_variation(seen.images, "batch") - drawn * size).abs()
