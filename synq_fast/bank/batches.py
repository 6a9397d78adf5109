"""Training batches: which images, their crops, and the low-pass filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from synq_fast import ops
from synq_fast.bank.crops import crop, random_crops
from synq_fast.bank.images import Bank
from synq_fast.bank.prefetch import Prefetcher, Tensors
from synq_fast.bank.variety import ALIKE, Variety, drawn_looks, varied
from synq_fast.fields import choice, number
from synq_fast.runtime.memory import send
from synq_fast.runtime.precision import tensor_float32
from synq_fast.runtime.seeding import generator_for, shuffled


@dataclass(frozen=True)
class Filter:
    """Low-pass filter on the synthetic images."""

    kind: str = choice(
        "gaussian", "of the frequency response", "none", "gaussian", "butterworth", "ideal"
    )
    cutoff: float = number(
        8.0,
        "cut-off D0; below one, nothing but flat images would pass",
        1,
        1e6,
        "cycles per image",
    )
    order: int = number(2, "of the Butterworth filter; the other kinds have none", 1, 100)


class Batches(Protocol):
    """Images and labels by the number of a step, from a bank or made as they are asked for."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the terms of making the images; none where they come from a bank."""
        ...

    def inputs(self, step: int) -> Tensors:
        """What a step's batch is made of: drawn on the host, lying on the device."""
        ...

    def made(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W), labels (B,), and the detached terms of making them, if any.

        It never waits for the device, so that it can be recorded.
        """
        ...

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a step."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What later batches depend on, beside their number."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...


def filtered(images: Tensor, recipe: Filter) -> Tensor:
    """Images (B, C, H, W) after the recipe's low-pass filter."""
    if recipe.kind == "none":
        return images
    with tensor_float32(False):
        return ops.low_pass(images, recipe.cutoff, kind=recipe.kind, order=recipe.order)


@dataclass(eq=False)
class BatchSource:
    """Training batches that depend only on the seed and the step's number.

    Each pass over the bank is a new random order; every image gets its own crop and mirror, and
    the low-pass filter follows, as in the published code. A streamed bank is read ahead in a
    background thread until ``close``.
    """

    bank: Bank
    batch_size: int
    crop_scale: tuple[float, float]
    filter: Filter
    seed: int
    part: slice = field(default_factory=lambda: slice(None))
    """Which images of each batch; ranks that work together take one part each."""
    variety: Variety = ALIKE
    """What the images look like in each batch."""
    valid: tuple[Tensor, Tensor] | None = None
    """Least and largest value of each channel (C, 1, 1), on the bank's device."""
    prefetch: int = 2
    """Batches that are read ahead from a streamed bank; 0 reads each when it is needed."""
    _ahead: Prefetcher | None = field(default=None, init=False, repr=False)

    names: ClassVar[tuple[str, ...]] = ()

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a step."""
        images, labels, _ = self.made(*self.inputs(step))
        return images, labels

    def made(self, *inputs: Tensor) -> tuple[Tensor, Tensor, None]:
        """Images (B, C, H, W) and labels (B,) of what ``inputs`` gave."""
        images, labels, crops, *looks = inputs
        return self.transformed(images, crops, *looks), labels, None

    def state(self) -> dict[str, Tensor]:
        """Nothing: a batch follows from seed and number."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def inputs(self, step: int) -> Tensors:
        """What ``read`` gives, read ahead where that pays."""
        if self.bank.streamed and self.prefetch and self._ahead is None:
            self._ahead = Prefetcher(self.read, self.bank.device, self.prefetch)
        return (self._ahead or self.read)(step)

    def close(self) -> None:
        """End the background thread; a later call starts another."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """What chance decides about a step, on the CPU: image numbers (B,) and crops (B, 2, 3)."""
        chosen = shuffled(len(self.bank), self.batch_size, step, self.seed, "order")
        crops = generator_for(self.seed, "crops", step)
        maps = random_crops(self.batch_size, self.crop_scale, crops)
        return chosen[self.part], maps[self.part]

    def read(self, step: int) -> Tensors:
        """Images as they are in the bank, labels, crops (B, 2, 3) and looks (B, 3) of a step.

        On the bank's device; looks only where images vary.
        """
        chosen, crops = self.draw(step)
        given = *self.bank.take(chosen), send(crops, self.bank.device)
        if not self.variety.changes:
            return given
        looks = drawn_looks(self.batch_size, self.seed, step)[self.part]
        return *given, send(looks, self.bank.device)

    def transformed(self, images: Tensor, crops: Tensor, looks: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) cropped, filtered and varied, on their device."""
        images = filtered(crop(images, crops), self.filter)
        return images if looks is None else varied(images, looks, self.variety, self.valid)
