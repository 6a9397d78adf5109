"""Images on which the quantized network and the teacher differ, as much as they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from synq_fast.fields import factor
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen


@dataclass(frozen=True)
class Discrepancy(ImageLoss):
    """Minus the mean absolute difference of the logits (PSAQ-ViT V2's game, TNNLS 2023).

    The paper's abstract says that samples and quantized network compete; its losses are not public,
    and this form is what is known of them.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"student"})
    whole: ClassVar[bool] = True

    weight: float = factor(1.0, "factor on the negative mean absolute difference of the logits")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over images and classes."""
        assert seen.student is not None
        return -(seen.logits.float() - seen.student.float()).abs().mean()
