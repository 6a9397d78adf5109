"""Losses on the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops
from synq_fast.fields import choice, factor, flag, number
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class Distillation:
    """KL to the teacher, and cross entropy where the label can be trusted (SynQ, I3).

    The label counts only for images whose difficulty ``1 - p_teacher(label)`` is below the
    threshold; images keep the verdict of the clean pass.
    """

    names: ClassVar[tuple[str, ...]] = ("kl", "ce")
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = True

    alpha: float = factor(20.0, "factor on the KL divergence, beside the squared temperature")
    temperature: float = number(20.0, "of the softmax in the KL divergence", 0.01, 1000)
    label_weight: float = factor(0.05, "factor on the cross entropy against the synthetic labels")
    soft_labels_only_if_difficult: bool = flag(
        True, "leave images of at least the threshold's difficulty to the KL divergence alone"
    )
    difficulty_threshold: float = number(
        0.5, "difficulty is 1 - the teacher's probability of the label", 0, 1
    )
    reduction: str = choice(
        "batch",
        "what the KL divergence is divided by: the number of images, or of images times classes "
        "(GDFQ)",
        "batch",
        "element",
    )

    @property
    def active(self) -> bool:
        """Whether one of the two counts."""
        return bool(self.alpha or self.label_weight)

    @property
    def reads_labels(self) -> bool:
        """Whether the cross entropy counts."""
        return bool(self.label_weight)

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """Nothing beside the logits."""
        return ()

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """KL and masked cross entropy."""
        # Difficulty is at most 1, so a threshold of 2 lets every label count.
        threshold = self.difficulty_threshold if self.soft_labels_only_if_difficult else 2.0
        elements = student.logits.shape[1] if self.reduction == "element" else 1
        kl, ce, _ = ops.distillation_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            temperature=self.temperature,
            alpha=self.alpha / elements,
            difficulty_threshold=threshold,
        )
        if batch.judge is not None:
            p = torch.softmax(batch.judge.float(), 1).gather(1, batch.labels[:, None]).squeeze(1)
            each = functional.cross_entropy(student.logits.float(), batch.labels, reduction="none")
            ce = (each * (1 - p < threshold)).sum() / len(each)
        return kl, self.label_weight * ce
