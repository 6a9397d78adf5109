"""Labels of which some are soft: images that the teacher is less sure of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast.fields import factor, number
from synq_fast.runtime.memory import send
from synq_fast.synthesis.losses.classes import check_classes
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen, Start


@dataclass(frozen=True)
class SoftLabels(ImageLoss):
    """Squared distance of the label's probability from its target (IntraQ, CVPR 2022, L_SIL).

    The target is 1 for about half of the images and uniform between ``lowest`` and 1 for the rest.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"labels"})

    weight: float = factor(1.0, "factor on the squared distance")
    lowest: float = number(0.6, "smallest probability of the label that is aimed at", 0, 1)

    def begin(self, start: Start) -> tuple[Tensor, ...]:
        """The targets (B,)."""
        lots = torch.rand(
            2, len(start.labels), generator=start.generator, dtype=torch.float32, device="cpu"
        )
        soft = self.lowest + (1 - self.lowest) * lots[1]
        return (send(torch.where(lots[0] < 0.5, 1.0, soft), start.labels.device),)

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the images."""
        check_classes(seen.logits)
        p = torch.softmax(seen.logits.float(), 1).gather(1, seen.labels[:, None]).squeeze(1)
        return (p - held[0]).square().mean()
