"""Training batches: which images, their crops, and the low-pass filter."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.recipes.schema import Filter
from synq_fast.seeding import generator_for
from synq_fast.synthesis.bank import ImageBank
from synq_fast.synthesis.transforms import crop, random_crops


def filtered(images: Tensor, recipe: Filter) -> Tensor:
    """Images (B, C, H, W) after the recipe's low-pass filter."""
    if recipe.kind == "none":
        return images
    return ops.low_pass(images, recipe.cutoff, kind=recipe.kind, order=recipe.order)


@dataclass(frozen=True)
class BatchSource:
    """Training batches that depend only on the seed and the step's number.

    Each pass over the bank is a new random order; every image gets its own crop and mirror, and
    the low-pass filter follows, as in the published code.
    """

    bank: ImageBank
    batch_size: int
    crop_scale: tuple[float, float]
    filter: Filter
    seed: int
    part: slice = field(default_factory=lambda: slice(None))
    """Which images of each batch; ranks that work together take one part each."""

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a step."""
        device = self.bank.images.device
        chosen, crops = self.draw(step)
        return self.make(chosen.to(device), crops.to(device))

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """What chance decides about a step, on the CPU: image numbers (B,) and crops (B, 2, 3)."""
        count = len(self.bank)
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            epoch: torch.randperm(count, generator=generator_for(self.seed, "order", epoch))
            for epoch in {position // count for position in positions}
        }
        chosen = torch.stack([orders[p // count][p % count] for p in positions])
        crops = generator_for(self.seed, "crops", step)
        maps = random_crops(self.batch_size, self.crop_scale, crops)
        return chosen[self.part], maps[self.part]

    def make(self, chosen: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of a draw, on the bank's device."""
        images = crop(self.bank.images[chosen], crops)
        return filtered(images, self.filter), self.bank.labels[chosen]
