"""Alignment of class activation maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.errors import ModelError
from synq_fast.fields import choice, factor
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class Cam:
    """Mean squared distance between class activation maps (SynQ, I2).

    The gradient of the score at the tapped activation needs only the head of each network; as
    channel weights it is constant, so nothing is differentiated twice.
    """

    names: ClassVar[tuple[str, ...]] = ("cam",)
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = False

    weight: float = factor(200.0, "factor on the distance")
    target: str = choice(
        "argmax",
        "whose map: each network's own strongest class, or the synthetic label's",
        "argmax",
        "label",
    )

    @property
    def active(self) -> bool:
        """Whether it has a weight."""
        return bool(self.weight)

    @property
    def reads_labels(self) -> bool:
        """Whether the maps are those of the labels."""
        return self.target == "label"

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """The last spatial convolution that the logits depend on, or a transformer's patches."""
        if not structure.maps:
            raise ModelError(
                "the recipe compares class activation maps, but this model has no convolution "
                "with more than one output pixel, and no attention; set finetune.cam.weight = 0"
            )
        return (Tap(structure.maps[-1], "map"),)

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """Compare the student's map with the teacher's, both resized to the images."""
        (theirs,), (ours,) = teacher.values, student.values
        target = ops.grad_cam(theirs.detach(), self._gradient(teacher, batch.labels), batch.size)
        loss = ops.cam_alignment_loss(ours, self._gradient(student, batch.labels), target)
        return (self.weight * loss,)

    def _gradient(self, view: View, labels: Tensor) -> Tensor:
        target = labels if self.target == "label" else view.logits.argmax(1)
        score = view.logits.gather(1, target[:, None]).sum()
        return torch.autograd.grad(score, view.values[0], retain_graph=True)[0]
