"""Patches that a vision transformer no longer looks at while its images are optimized."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.synthesis.settings import Sparse
from synq_fast.synthesis.teacher import ImageTeacher

_FEWEST = 4
_LEAST = 1e-12


class Dropping:
    """Which patches the teacher still sees of each image of a batch (SMI, ICML 2024).

    At some steps the least attended of those that are left are dropped for good. Attention is that
    of the class token in the last layer, the mean over the heads (without a class token the mean
    over all patches too), to the images as they are, not moved or cropped.
    """

    def __init__(self, recipe: Sparse, teacher: ImageTeacher, steps: int) -> None:
        """Begin with all patches.

        Args:
            recipe: how many are dropped, and when.
            teacher: made with ``sparse``.
            steps: of the whole optimization.
        """
        self.recipe, self.teacher = recipe, teacher
        self.kept: Tensor | None = None
        """(B, k) int64: places in the grid of the image, ascending; None: all."""
        self.attended: Tensor | None = None
        """(B, k): attention to them when they were kept last, above 0."""
        self.seen: Tensor | None = None
        """(B, k) int64: places in the grid of the image as it is moved now; None: all."""
        self._steps = [int(share * steps) for share in recipe.milestones]

    def due(self, step: int) -> bool:
        """Whether patches are dropped before a step."""
        return step in self._steps

    @torch.no_grad()
    def drop(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Keep the most attended of what is left of images (B, C, H, W), labels (B,).

        Returns:
            (B, 1, H, W): 1 at the pixels of the patches that are left, else 0.
        """
        showed = self.teacher.judged(images, labels, self.kept).attentions[-1]
        p = showed.probabilities.float()
        before = showed.before_patches(p.shape[-1])
        attention = (p[..., 0, :] if before else p.mean(-2)).mean(1)[:, before:]
        left = attention.shape[1]
        for _ in range(self._steps.count(step)):
            left = min(left, max(_FEWEST, round(left * (1 - self.recipe.share))))
        best = attention.sort(dim=1, descending=True, stable=True).indices[:, :left].sort(1).values
        self.attended = attention.gather(1, best).clamp_min(_LEAST)
        self.kept = best if self.kept is None else self.kept.gather(1, best)
        return (self.map(self.kept, self.attended) > 0).float()

    def inputs(self) -> tuple[Tensor, ...]:
        """What a step needs; its shapes change when patches are dropped."""
        return tuple(self.state().values())

    def held(self, images: Tensor, kept: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Images without a gradient where a patch was dropped, and attention at every pixel.

        Args:
            images: (B, C, H, W).
            kept: of ``inputs``.
            attended: of ``inputs``.
        """
        attention = self.map(kept, attended)
        return torch.where(attention > 0, images, images.detach()), attention

    def map(self, kept: Tensor, attended: Tensor) -> Tensor:
        """Attention at every pixel (B, 1, H, W), 0 where a patch was dropped."""
        side, patch = self.teacher.grid, self.teacher.patch
        grid = attended.new_zeros(len(kept), side * side).scatter(1, kept, attended)
        whole = grid.view(-1, 1, side, side)
        return whole.repeat_interleave(patch, 2).repeat_interleave(patch, 3)

    def look(self, attention: Tensor, count: int) -> None:
        """Show the teacher as many patches, where a moved map (B, 1, H, W) of attention has most.

        Whole patches moved by whole patches are found exactly.
        """
        mean = functional.avg_pool2d(attention, self.teacher.patch).flatten(1)
        order = mean.sort(dim=1, descending=True, stable=True).indices
        self.seen = order[:, :count].sort(1).values

    def whole(self, drawn: Tensor) -> Tensor:
        """A move and a mirroring (3,), the move to the nearest whole patch once some are dropped.

        So that what was dropped moves with the image, and no patch is half dropped.
        """
        if self.kept is None:
            return drawn
        patch = self.teacher.patch
        moves = (drawn[:2].float() / patch).round().long() * patch
        return torch.cat([moves, drawn[2:]])

    def state(self) -> dict[str, Tensor]:
        """What is left."""
        if self.kept is None or self.attended is None:
            return {}
        return {"kept": self.kept, "attended": self.attended}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Put back a state."""
        self.kept, self.attended = (
            tensors[name].to(device) if name in tensors else None for name in ("kept", "attended")
        )
