"""What is optimized so that images appear: the pixels themselves, or what draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decaying:
    """A learning rate that is multiplied with ``decay`` every so many steps."""

    start: float
    decay: float
    every: int

    def at(self, step: int) -> float:
        """The rate of a step."""
        return self.start * self.decay ** (step // self.every)


class Parametrization(Protocol):
    """Images as a function of parameters, and of what is drawn anew at every step."""

    drawn: ClassVar[int]
    """How many tensors ``draw`` gives."""
    batch_size: int
    """How many images there are of what it gives."""

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """What an optimizer takes; a group without a ``decaying`` rate has the plateau's."""
        ...

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """What chance decides about a step, on the device."""
        ...

    def images(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), differentiable in the parameters, and their labels (B,) int64."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The parameters, and everything else that later images depend on."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        ...


class Pixels:
    """Every pixel is a parameter; the labels stay."""

    drawn: ClassVar[int] = 0

    def __init__(
        self, start: Tensor, labels: Tensor, valid: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Begin at images (B, C, H, W), normalised space, which are not changed.

        Args:
            start: the images.
            labels: (B,) int64.
            valid: the least and the largest value of each channel (C, 1, 1), which pixels are
                brought back to after each update.
        """
        self.pixels = start.clone(memory_format=torch.channels_last).requires_grad_()
        self.labels, self.batch_size, self.valid = labels, len(labels), valid

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """The pixels."""
        return [{"params": [self.pixels]}]

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def images(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels and the labels."""
        if self.valid is not None:
            with torch.no_grad():
                self.pixels.clamp_(*self.valid)
        return self.pixels, self.labels

    def state(self) -> dict[str, Tensor]:
        """The pixels."""
        return {"images": self.pixels.detach()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the pixels."""
        self.pixels.copy_(tensors["images"])
