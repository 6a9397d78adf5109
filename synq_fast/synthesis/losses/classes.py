"""The class loss: images that the teacher takes for what their labels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast.errors import ModelError
from synq_fast.fields import factor, number
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen


@dataclass(frozen=True)
class Classes(ImageLoss):
    """Focal cross entropy of the teacher's logits (HAST's hard-sample loss).

    Where regions of the images are looked at too (``synthesis.regions``), theirs is added.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"labels"})

    weight: float = factor(0.1, "factor on the focal class loss")
    gamma: float = number(
        0.5, "its exponent: higher looks more at hard images, 0 is plain cross entropy", 0, 100
    )

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the images, and that over their regions."""
        loss = focal_class_loss(seen.logits, seen.labels, self.gamma)
        if seen.enlarged is None:
            return loss
        return loss + focal_class_loss(seen.enlarged.logits, seen.enlarged.labels, self.gamma)


def focal_class_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean of ``(1 - p)^gamma * cross entropy`` (HAST's hard-sample loss), a scalar.

    ``1 - p`` comes from ``-expm1(log p)`` and stays above 1e-8: for gamma < 1 the power has an
    infinite slope at ``p == 1``, which times a cross entropy of 0 is NaN.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        gamma: focus on what the teacher finds hard; 0 is plain cross entropy.

    Raises:
        ModelError: there is only one class, of which every image would be.
    """
    check_classes(logits)
    log_p = torch.log_softmax(logits.float(), 1).gather(1, labels[:, None]).squeeze(1)
    difficulty = (-torch.expm1(log_p)).clamp_min(1e-8)
    return (difficulty**gamma * -log_p).mean()


def check_classes(logits: Tensor) -> None:
    """Refuse a teacher with one class.

    Raises:
        ModelError: every image would be of it.
    """
    if logits.shape[1] < 2:
        raise ModelError(
            f"the teacher gives {logits.shape[1]} logit per image, so its class loss would always "
            "be zero; wrap a binary model so that it gives the two logits [0, z]"
        )
