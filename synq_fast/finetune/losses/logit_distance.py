"""The plainest distance of two networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from synq_fast.fields import factor
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class LogitDistance:
    """Mean absolute difference of the logits (PSAQ-ViT V2's student, TNNLS 2023, as far as known).

    What ``[synthesis.discrepancy]`` makes large, the quantized network makes small.
    """

    names: ClassVar[tuple[str, ...]] = ("logit_distance",)
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False

    weight: float = factor(1.0, "factor on the mean absolute difference of the logits")

    @property
    def active(self) -> bool:
        """Whether it has a weight."""
        return bool(self.weight)

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """Nothing beside the logits."""
        return ()

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """The mean over images and classes, in float32."""
        difference = student.logits.float() - teacher.logits.float()
        return (self.weight * difference.abs().mean(),)
