"""Mixed images: each a weighted mean of two of its batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synq_fast.bank.batches import Batches
from synq_fast.bank.prefetch import Tensors
from synq_fast.runtime.memory import send
from synq_fast.runtime.seeding import generator_for


@dataclass(eq=False)
class MixedBatches:
    """Batches whose images are mixed with their neighbours (mixup, arXiv 1710.09412, on images).

    Image i becomes ``s_i * image i + (1 - s_i) * image i + 1``, the last one's neighbour being the
    first, with its own share s_i from Beta(alpha, alpha); a batch is in random order, so the
    neighbour is a random other image. Labels stay those of image i and mean little. Every rank
    makes the whole batch and keeps its part of the mixed one, so that any number of them sees the
    same images; what is drawn depends on the seed and the step's number alone.
    """

    whole: Batches
    """Batches of all ranks together."""
    batch_size: int
    """Images in each."""
    alpha: float
    seed: int
    part: slice = field(default_factory=lambda: slice(None))
    """Which images of each batch to keep."""

    @property
    def names(self) -> Sequence[str]:
        """Those of the batches."""
        return self.whole.names

    def shares(self, step: int) -> Tensor:
        """The share (B,) float32 that each image of a step keeps, on the CPU."""
        chance = random.Random(generator_for(self.seed, "mixup", step).initial_seed())
        drawn = [chance.betavariate(self.alpha, self.alpha) for _ in range(self.batch_size)]
        return torch.tensor(drawn, dtype=torch.float32, device="cpu")

    def inputs(self, step: int) -> Tensors:
        """What the batches take, and the shares."""
        given = self.whole.inputs(step)
        return *given, send(self.shares(step), given[0].device)

    def made(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mixed images (B, C, H, W), labels (B,), and the detached terms of making them, if any."""
        *given, shares = inputs
        images, labels, terms = self.whole.made(*given)
        # Unlike a roll, it keeps the memory format.
        neighbours = torch.cat([images[1:], images[:1]])
        shares = shares[self.part, None, None, None]
        mixed = torch.lerp(neighbours[self.part], images[self.part], shares)
        return mixed, labels[self.part], terms

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Mixed images (B, C, H, W) and labels (B,) of a step."""
        images, labels, _ = self.made(*self.inputs(step))
        return images, labels

    def state(self) -> dict[str, Tensor]:
        """That of the batches."""
        return self.whole.state()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state of the batches."""
        self.whole.restore(tensors)

    def close(self) -> None:
        """End what reads the batches in the background."""
        self.whole.close()
