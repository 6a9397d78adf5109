"""Cross entropy against the teacher's own labels, as far as they can be relied on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast.errors import ModelError
from synq_fast.fields import factor, items
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class PseudoLabels:
    """Cross entropy against the teacher's strongest class, or its two strongest (PLF).

    An image is reliable where the entropy of the teacher's softmax, as a share of ln C, is at most
    a threshold that moves linearly over the training; its label is then the teacher's strongest
    class. The other images have the two strongest as labels, in the proportion of their
    probabilities (Fan et al., "Data-Free Quantization via Pseudo-label Filtering", CVPR 2024).
    Either sum is divided by the number of all images, so that a batch may be split. Images keep
    the verdict of the clean pass.
    """

    names: ClassVar[tuple[str, ...]] = ("reliable_ce", "unreliable_ce")
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    reliable_weight: float = factor(1.0, "factor on the cross entropy of reliable images")
    unreliable_weight: float = factor(0.3, "factor on the cross entropy of the others")
    entropy_thresholds: tuple[float, float] = items(
        (0.5, 0.2),
        "entropy up to which an image is reliable, at the first step and after the last one",
        low=0,
        high=1,
        unit="of ln classes",
    )

    @property
    def active(self) -> bool:
        """Whether one of the two counts."""
        return bool(self.reliable_weight or self.unreliable_weight)

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """Nothing beside the logits."""
        return ()

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """Cross entropy of the reliable images and of the others.

        Raises:
            ModelError: there are less than two classes.
        """
        judge = teacher.logits if batch.judge is None else batch.judge
        classes = judge.shape[1]
        if classes < 2:
            raise ModelError(
                f"the teacher gives {classes} logit per image, so there are no two classes to "
                "label an image with; wrap a binary model so that it gives the two logits [0, z]"
            )
        judge = judge.detach().float()
        log_p = torch.log_softmax(judge, 1)
        entropy = -(log_p.exp() * log_p).sum(1) / math.log(classes)
        first, last = self.entropy_thresholds
        reliable = entropy <= first + (last - first) * batch.done
        strongest, labels = judge.topk(2, 1)
        shares = torch.softmax(strongest, 1)
        each = -torch.log_softmax(student.logits.float(), 1).gather(1, labels)
        one, both = each[:, 0], (shares * each).sum(1)
        return (
            self.reliable_weight * torch.where(reliable, one, 0.0).mean(),
            self.unreliable_weight * torch.where(reliable, 0.0, both).mean(),
        )
