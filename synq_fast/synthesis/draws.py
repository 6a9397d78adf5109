"""What chance and a step's number decide about a step of image optimization, beside its crops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from synq_fast.runtime.memory import send
from synq_fast.synthesis.losses import ImageLoss, Moment
from synq_fast.synthesis.regions import draw_regions
from synq_fast.synthesis.settings import Regions


class Draws:
    """Draws for one batch of images, from its generator, whatever its losses ask for."""

    def __init__(
        self,
        losses: Mapping[str, ImageLoss],
        regions: Regions,
        grid: int,
        generator: torch.Generator,
        *,
        size: tuple[int, int],
        images: int,
        steps: int,
        attentions: Sequence[torch.Size],
        device: torch.device,
    ) -> None:
        """Prepare.

        Args:
            losses: by name.
            regions: of the images, that are looked at too.
            grid: patches along a side of an image.
            generator: of the batch, on the CPU.
            size: (height, width) of an image.
            images: in the batch.
            steps: of the batch.
            attentions: the shape of each attention's probabilities, of two images.
            device: where tensors are put.
        """
        self.losses, self.regions, self.grid, self.generator = losses, regions, grid, generator
        self.images, self.steps, self.device = images, steps, device
        self.attentions = tuple(attentions)
        # Top, left, bottom and right.
        self._patch = [side // max(1, grid) for side in (*size, *size)]
        self._counts: dict[str, int] = {}

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """Regions in pixels and their places, where they are on; then what the losses draw.

        A step that looks at no region has those of shape (0, B, 4) and (0, B).
        """
        drawn: list[Tensor] = []
        if self.regions.most:
            drawn += self._regions()
        moment = Moment(step / self.steps, self.images, self.generator, self.attentions)
        for name, loss in self.losses.items():
            own = loss.draw(moment)
            self._counts[name] = len(own)
            drawn += own
        return tuple(send(x, self.device) for x in drawn)

    def split(
        self, drawn: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, Tensor] | None, Mapping[str, tuple[Tensor, ...]]]:
        """What a call gave: the regions, and each loss's by its name."""
        rest = iter(drawn)
        regions = (next(rest), next(rest)) if self.regions.most else None
        return regions, dict(self._of_losses(rest))

    def _of_losses(self, rest: Iterator[Tensor]) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        for name, count in self._counts.items():
            yield name, tuple(next(rest) for _ in range(count))

    @property
    def count(self) -> int:
        """How many tensors a call gives; known after the first."""
        return 2 * bool(self.regions.most) + sum(self._counts.values())

    def _regions(self) -> tuple[Tensor, Tensor]:
        lot = torch.rand((), generator=self.generator, dtype=torch.float32, device="cpu")
        if lot >= self.regions.share:
            none = torch.zeros(0, self.images, 4, dtype=torch.int64, device="cpu")
            return none, none[..., 0]
        found, places = draw_regions(self.images, self.regions.most, self.grid, self.generator)
        return found * torch.tensor(self._patch, device="cpu"), places
