"""Few patches that attention tells apart, and that both networks look at alike (MaskAQ)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.fields import factor, number
from synq_fast.graph.patches import before_patches
from synq_fast.synthesis.losses.loss import Attended, ImageLoss, Moment, Reads, Seen

_LEAST_VARIANCE = 1e-8
_LEAST_NORM = 1e-6


@dataclass(frozen=True)
class AttentionEntropy(ImageLoss):
    """The entropy of the similarities between rows of attention (MaskAQ, arXiv 2606.04373).

    The rows of some patches in the mean of the heads' logits, without what comes before the
    patches; the cosines S of all pairs of them, of which a Gaussian has the entropy
    ``0.5 ln(2 pi e (var S + 1e-8))``. The rows are drawn anew in each step, the same for all images
    of a batch (the published code draws for each image). A window counts as an image.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"attentions"})
    whole: ClassVar[bool] = True

    weight: float = factor(1.0, "factor on the negative entropy, the mean over the layers")
    rows: int = number(64, "how many are compared, of those that there are", 2, 2**16, "patches")

    def draw(self, moment: Moment) -> tuple[Tensor, ...]:
        """The rows of each layer, (rows,) int64."""
        drawn = []
        for *_, queries in moment.attentions:
            order = torch.randperm(
                queries - before_patches(queries), generator=moment.generator, device="cpu"
            )
            drawn.append(order[: self.rows].sort().values)
        return tuple(drawn)

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """Minus the mean over layers and images."""
        entropies = [
            similarity_entropy(attended, rows).mean()
            for attended, rows in zip(seen.attentions, held, strict=True)
        ]
        return -torch.stack(entropies).mean()


def similarity_entropy(attended: Attended, rows: Tensor) -> Tensor:
    """That of each image's or window's rows (rows,), in nats, (B,)."""
    before = attended.before_patches(attended.logits.shape[-1])
    patches = attended.logits.float().mean(-3).flatten(0, -3)[:, before:, before:]
    chosen = functional.normalize(patches.index_select(1, rows), dim=-1, eps=_LEAST_NORM)
    similarities = (chosen @ chosen.mT).flatten(1)
    variance = similarities.var(1, unbiased=False) + _LEAST_VARIANCE
    return 0.5 * (math.log(2 * math.pi * math.e) + variance.log())


@dataclass(frozen=True)
class Alignment(ImageLoss):
    """Both networks look alike at the patches that matter (MaskAQ, arXiv 2606.04373).

    A patch matters where the class token's row of logits, the mean over heads and layers of the
    float network, is among the largest ``first`` at the first step to ``last`` at the last one, and
    is not left out by chance. The loss is the absolute difference of those rows there, the mean
    over patches, images and layers.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"attentions", "class token", "student"})
    whole: ClassVar[bool] = True

    weight: float = factor(0.1, "factor on the difference of attention at the chosen patches")
    first: float = number(0.5, "part of the patches that counts in the first step", 0, 1)
    last: float = number(0.1, "part of the patches that counts in the last step", 0, 1)
    dropped: float = number(0.3, "part of those that is left out at random in each step", 0, 0.99)

    def draw(self, moment: Moment) -> tuple[Tensor, ...]:
        """How many count and how many of them stay, (2,) int64; a lot for each patch (B, N)."""
        tokens = moment.attentions[0][-1]
        patches = tokens - before_patches(tokens)
        share = self.first + (self.last - self.first) * moment.done
        chosen = max(1, int(share * patches))
        stay = max(1, round(chosen * (1 - self.dropped)))
        size = (moment.images, patches)
        lots = torch.rand(size, generator=moment.generator, dtype=torch.float32, device="cpu")
        return torch.tensor([chosen, stay], device="cpu"), lots

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the layers."""
        counts, lots = held
        pairs = [
            (_looked(attended, attended.logits), _looked(attended, logits))
            for attended, logits in zip(seen.attentions, seen.student_attentions, strict=True)
        ]
        with torch.no_grad():
            importance = torch.stack([teacher for teacher, _ in pairs]).mean(0)
            chosen = _places(-importance) < counts[0]
            mask = (_places(torch.where(chosen, lots, lots + 1)) < counts[1]).float()
        losses = [(mask * (t - q).abs()).sum() / mask.sum() for t, q in pairs]
        return torch.stack(losses).mean()


def _looked(attended: Attended, logits: Tensor) -> Tensor:
    """The class token's row over the patches (B, N), scaled, the mean over the heads."""
    scale = attended.output.shape[-1] ** -0.5
    before = attended.before_patches(logits.shape[-1])
    row: Tensor = scale * logits[..., 0, before:].float().mean(1)
    return row


def _places(x: Tensor) -> Tensor:
    """The place (B, N) of each value among its row's, 0 for the least."""
    return x.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
