"""Distance between what the heads of attention give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast.errors import ModelError
from synq_fast.fields import factor, number
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.patches import before_patches
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap

_C2 = 9e-4


@dataclass(frozen=True)
class HeadSimilarity:
    """Structural similarity of each head's output, student against teacher (MimiQ, L_HAD).

    arXiv 2407.20021: one minus the mean over images, heads and channels of ``(2 cov + C2) /
    (var + var' + C2)`` with ``C2 = 9e-4``, where covariance and variances are over the patches;
    there is no luminance term. The mean over the layers. With ``emphasis`` these are weighted
    means over the patches, in which some count more (MaskAQ, arXiv 2606.04373).
    """

    names: ClassVar[tuple[str, ...]] = ("head_similarity",)
    per_image: ClassVar[bool] = True
    perturbed: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False

    weight: float = factor(10.0, "factor on how much the heads' outputs differ")
    emphasis: float = number(
        1.0, "how often those patches count of which the float network gives most", 1, 1e3
    )
    emphasized: float = number(
        0.1,
        "part of the patches that is, by the mean absolute output over heads and channels",
        0,
        1,
    )

    @property
    def active(self) -> bool:
        """Whether it has a weight."""
        return bool(self.weight)

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """What every attention gives."""
        if not structure.attentions:
            raise ModelError(
                "the recipe compares the heads of attention, but this model has no attention; set "
                "finetune.head_similarity.weight = 0"
            )
        return tuple(Tap(attention.output) for attention in structure.attentions)

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """The mean over the layers of (..., H, N, D)."""
        losses = [
            1 - structural_similarity(q, t, self.emphasis, self.emphasized)
            for q, t in zip(student.values, teacher.values, strict=True)
        ]
        return (self.weight * torch.stack(losses).mean(),)


def structural_similarity(
    student: Tensor, teacher: Tensor, emphasis: float = 1.0, emphasized: float = 0.0
) -> Tensor:
    """The mean similarity of the patches (..., H, N, D) in each channel of each head, 0-d.

    Args:
        student: what its heads give, class tokens included.
        teacher: the same.
        emphasis: weight in means over the patches of those of which the teacher gives most.
        emphasized: which part of them these are; at least one.
    """
    before = before_patches(teacher.shape[-2])
    q, t = (x[..., before:, :].float() for x in (student, teacher))
    weights = None if emphasis == 1 else _weights(t.detach(), emphasis, emphasized)

    def mean(x: Tensor) -> Tensor:
        return x.mean(-2) if weights is None else (weights * x).sum(-2)

    q, t = (x - mean(x)[..., None, :] for x in (q, t))
    covariance = mean(q * t)
    variances = mean(q.square()) + mean(t.square())
    return ((2 * covariance + _C2) / (variances + _C2)).mean()


def _weights(teacher: Tensor, emphasis: float, emphasized: float) -> Tensor:
    """Of each patch (..., 1, N, 1), of sum 1; the same for all heads."""
    size = teacher.abs().mean((-3, -1))
    count = max(1, round(emphasized * size.shape[-1]))
    first = size.argsort(dim=-1, descending=True, stable=True)[..., :count]
    weights = torch.ones_like(size).scatter(-1, first, emphasis)
    return (weights / weights.sum(-1, keepdim=True))[..., None, :, None]
