"""Distance between what the heads of attention give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.errors import ModelError
from synq_fast.fields import factor, number
from synq_fast.finetune.losses.loss import Batch, View
from synq_fast.graph.patches import before_patches
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


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
            ops.structural_similarity_loss(t, q, self._weights(t))
            for q, t in zip(
                map(_patches, student.values), map(_patches, teacher.values), strict=True
            )
        ]
        return (self.weight * torch.stack(losses).mean(),)

    def _weights(self, teacher: Tensor) -> Tensor | None:
        """How often each patch of (B, H, N, D) counts, (B, 1, N), the same for all heads."""
        if self.emphasis == 1:
            return None
        size = teacher.detach().float().abs().mean((1, 3))
        count = max(1, round(self.emphasized * size.shape[-1]))
        first = size.argsort(dim=-1, descending=True, stable=True)[..., :count]
        return torch.ones_like(size).scatter(-1, first, self.emphasis)[:, None]


def _patches(heads: Tensor) -> Tensor:
    """Without class token and registers, (B, H, N, D)."""
    return heads[..., before_patches(heads.shape[-2]) :, :].flatten(0, -4)
