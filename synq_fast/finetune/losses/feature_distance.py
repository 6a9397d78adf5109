"""Plain distance between what the networks compute inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.fields import factor
from synq_fast.finetune.losses.features import bodies_of
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class FeatureDistance:
    """Values of the residual bodies, student against teacher, element by element (PLF)."""

    names: ClassVar[tuple[str, ...]] = ("feature_distance",)
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    weight: float = factor(100.0, "factor on the sum over the bodies of the mean squared distance")

    @property
    def active(self) -> bool:
        """Whether it has a weight."""
        return bool(self.weight)

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """The values of every residual body."""
        return tuple(Tap(node, "activation") for node in bodies_of(structure, "feature_distance"))

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """Sum over bodies of the mean squared difference of (B, C, H, W)."""
        losses = [
            functional.mse_loss(q.float(), t.float())
            for q, t in zip(student.values, teacher.values, strict=True)
        ]
        return (self.weight * torch.stack(losses).sum(),)
