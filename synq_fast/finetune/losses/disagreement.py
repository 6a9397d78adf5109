"""Agreement of the networks' logits, up to a summand of their own for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast.fields import factor, number
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class Disagreement:
    """How far the logits' difference is from a constant, by its entropy (AdaDFQ).

    With d = softmax((teacher - student) / T) it is -T^2 times the mean entropy of d (Qian et al.,
    "Adaptive Data-Free Quantization", CVPR 2023): least, -T^2 ln C, where the student's logits are
    the teacher's up to one summand per image, so it is negative.
    """

    names: ClassVar[tuple[str, ...]] = ("disagreement",)
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    weight: float = factor(1.0, "factor on minus the entropy, beside the squared temperature")
    temperature: float = number(20.0, "of the softmax of the difference", 0.01, 1000)

    @property
    def active(self) -> bool:
        """Whether it has a weight."""
        return bool(self.weight)

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """Nothing beside the logits."""
        return ()

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """Minus the mean entropy of the difference, in float32."""
        difference = (teacher.logits.float() - student.logits.float()) / self.temperature
        log_d = torch.log_softmax(difference, 1)
        return (self.weight * self.temperature**2 * (log_d.exp() * log_d).sum(1).mean(),)
