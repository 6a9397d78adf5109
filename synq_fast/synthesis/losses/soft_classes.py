"""Soft labels of images that hold several classes."""

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
class SoftClasses(ImageLoss):
    """Cross entropy with soft labels that name every class of an image (SARDFQ, SL).

    arXiv 2412.16553: the label is ``softmax(Z)``, where Z is uniform in 0 to 1 (the paper's
    background is not public, this is a guess) plus a draw from ``low`` to ``high`` at every class
    that the image holds: its own, and those of the places that its regions are taken from
    (``synthesis.regions``). Each region has the label of its one class, and their loss is added.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"labels"})

    weight: float = factor(1.0, "factor on the cross entropy with soft labels")
    low: float = number(5.0, "the least that a class of the image adds to its logit", 0, 100)
    high: float = number(10.0, "the most", 0, 100)

    def begin(self, start: Start) -> tuple[Tensor, ...]:
        """The labels (B, classes) of the images, and those (B, P, classes) of their places."""
        labels, places = start.labels.cpu(), start.places
        own = labels[:, None].new_zeros(len(labels), 0) if places is None else places.cpu()
        held = torch.cat([labels[:, None], own], 1)
        drawn = [
            torch.rand(*size, generator=start.generator, dtype=torch.float32, device="cpu")
            for size in ((*held.shape, len(start.means)), held.shape, own.shape)
        ]
        logits, whole, alone = drawn[0], *(self.low + (self.high - self.low) * x for x in drawn[1:])
        image, regions = logits[:, 0], logits[:, 1:]
        image = image.scatter(1, held, image.gather(1, held) + whole)
        at = own[..., None]
        regions = regions.scatter(2, at, regions.gather(2, at) + alone[..., None])
        return tuple(send(z.softmax(-1), start.labels.device) for z in (image, regions))

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the images, and that over their regions."""
        check_classes(seen.logits)
        image, regions = held
        loss = _cross_entropy(seen.logits, image)
        if seen.enlarged is None:
            return loss
        places = seen.enlarged.places[..., None].expand(-1, -1, regions.shape[2])
        chosen = regions.transpose(0, 1).gather(0, places).flatten(0, 1)
        return loss + _cross_entropy(seen.enlarged.logits, chosen)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * torch.log_softmax(logits.float(), 1)).sum(1).mean()
