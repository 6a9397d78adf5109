"""Fine-tuning losses, each saying what it must see of the two networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops
from synq_fast.quant import View
from synq_fast.recipes.schema import Cam, Distillation, Features, Finetune


@dataclass(frozen=True)
class Batch:
    """Everything about one pass that is not a network's output."""

    labels: Tensor
    """(B,) int64"""
    size: tuple[int, int]
    """(height, width) of the images."""
    judge: Tensor | None = None
    """(B, classes) teacher logits that decide which labels count; None: those of this pass."""


class Term(Protocol):
    """A part of the loss."""

    @property
    def needs_features(self) -> bool:
        """Whether it reads the residual bodies."""
        ...

    @property
    def needs_cam(self) -> bool:
        """Whether it reads the class activation map's convolution."""
        ...

    @property
    def perturbed(self) -> bool:
        """Whether the term also counts in the perturbed pass."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """What it calls its values."""
        ...

    def __call__(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar losses by name."""
        ...


class DistillationTerm:
    """KL to the teacher, and cross entropy where the label can be trusted (SynQ, I3).

    The label counts only for images whose difficulty ``1 - p_teacher(label)`` is below the
    threshold; images keep the verdict of the clean pass.
    """

    needs_features = needs_cam = False
    perturbed = True
    names = ("kl", "ce")

    def __init__(self, recipe: Distillation) -> None:
        """Read weights and threshold."""
        self.recipe = recipe
        # Difficulty is at most 1, so a threshold of 2 lets every label count.
        self.threshold = (
            recipe.difficulty_threshold if recipe.soft_labels_only_if_difficult else 2.0
        )

    def __call__(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """KL and masked cross entropy."""
        recipe = self.recipe
        kl, ce, _ = ops.distillation_loss(
            student.logits,
            teacher.logits,
            batch.labels,
            temperature=recipe.temperature,
            alpha=recipe.alpha,
            difficulty_threshold=self.threshold,
        )
        if batch.judge is not None:
            p = torch.softmax(batch.judge.float(), 1).gather(1, batch.labels[:, None]).squeeze(1)
            each = functional.cross_entropy(student.logits.float(), batch.labels, reduction="none")
            ce = (each * (1 - p < self.threshold)).sum() / len(each)
        return {"kl": kl, "ce": recipe.label_weight * ce}


class FeatureTerm:
    """Channel energies of the residual bodies, student against teacher (HAST)."""

    needs_features, needs_cam = True, False
    names = ("features",)

    def __init__(self, recipe: Features) -> None:
        """Read weight and scope."""
        self.recipe = recipe
        self.perturbed = recipe.in_perturbed_pass

    def __call__(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """Sum over layers of the mean squared distance between normalised energies (B, C)."""
        losses = [
            functional.mse_loss(functional.normalize(q), functional.normalize(t))
            for q, t in zip(student.features, teacher.features, strict=True)
        ]
        return {"features": self.recipe.weight * torch.stack(losses).sum()}


class CamTerm:
    """Mean squared distance between class activation maps (SynQ, I2).

    The gradient of the score at the tapped activation needs only the head of each network; as
    channel weights it is constant, so nothing is differentiated twice.
    """

    needs_features, needs_cam, perturbed = False, True, False
    names = ("cam",)

    def __init__(self, recipe: Cam) -> None:
        """Read weight and target class."""
        self.recipe = recipe

    def _gradient(self, view: View, labels: Tensor) -> Tensor:
        assert view.cam_activation is not None
        target = labels if self.recipe.target == "label" else view.logits.argmax(1)
        score = view.logits.gather(1, target[:, None]).sum()
        return torch.autograd.grad(score, view.cam_activation, retain_graph=True)[0]

    def __call__(self, student: View, teacher: View, batch: Batch) -> dict[str, Tensor]:
        """Compare the student's map with the teacher's, both resized to the images."""
        assert student.cam_activation is not None and teacher.cam_activation is not None
        target = ops.grad_cam(
            teacher.cam_activation.detach(), self._gradient(teacher, batch.labels), batch.size
        )
        loss = ops.cam_alignment_loss(
            student.cam_activation, self._gradient(student, batch.labels), target
        )
        return {"cam": self.recipe.weight * loss}


def build_terms(recipe: Finetune) -> list[Term]:
    """The terms whose weight is not zero."""
    terms: list[Term] = [DistillationTerm(recipe.distillation)]
    if recipe.features.weight:
        terms.append(FeatureTerm(recipe.features))
    if recipe.cam.weight:
        terms.append(CamTerm(recipe.cam))
    return terms


def any_needs(terms: Iterable[Term], what: str) -> bool:
    """Whether some term has the need ``what``, e.g. ``"needs_cam"``."""
    return any(getattr(term, what) for term in terms)
