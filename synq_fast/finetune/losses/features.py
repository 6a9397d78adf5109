"""Losses on what the networks compute inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.fields import factor, flag
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


def bodies_of(structure: Structure, section: str) -> tuple[str, ...]:
    """The nodes that a loss on features reads.

    Raises:
        ModelError: there is none; names the loss's ``section`` of a recipe.
    """
    if not structure.bodies:
        raise ModelError(
            "the recipe compares what convolutions give, but this model has no convolution with "
            f"more than one output pixel; set finetune.{section}.weight = 0"
        )
    return structure.bodies


@dataclass(frozen=True)
class Features:
    """Channel energies of the residual bodies, student against teacher (HAST)."""

    names: ClassVar[tuple[str, ...]] = ("features",)
    per_image: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    weight: float = factor(1000.0, "factor on the sum over the bodies")
    in_perturbed_pass: bool = flag(True, "the published code leaves the loss out there on CIFAR")

    @property
    def active(self) -> bool:
        """Whether it has a weight."""
        return bool(self.weight)

    @property
    def perturbed(self) -> bool:
        """As the recipe says."""
        return self.in_perturbed_pass

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """The energies of every residual body."""
        return tuple(Tap(node, "energy") for node in bodies_of(structure, "features"))

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """Sum over bodies of the mean squared distance between normalised energies (B, C)."""
        losses = [
            functional.mse_loss(functional.normalize(q), functional.normalize(t))
            for q, t in zip(student.values, teacher.values, strict=True)
        ]
        return (self.weight * torch.stack(losses).sum(),)
