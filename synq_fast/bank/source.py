"""Where batches come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from synq_fast.bank.batches import Batches, BatchSource, Filter
from synq_fast.bank.images import Bank, spread
from synq_fast.bank.variety import ALIKE, Variety

WHOLE = slice(None)


class ImageSource(Protocol):
    """Gives batches of any size, to whoever asks after whom."""

    def batches(
        self,
        size: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        part: slice = WHOLE,
        student: nn.Module | None = None,
    ) -> Batches:
        """Batches that begin anew.

        Args:
            size: images in each, of all ranks together.
            crop_scale: share of the area that random crops keep; where images are made anew for
                every batch, nothing is cropped.
            part: which images of each batch.
            student: the quantized network, for images that are made against it; None while it is
                not calibrated.
        """
        ...

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to ``count`` images (B, C, H, W), not filtered, and labels (B,); changes nothing."""
        ...


@dataclass(frozen=True)
class BankSource:
    """The images of a bank, again and again in new orders."""

    bank: Bank
    filter: Filter
    seed: int
    variety: Variety = ALIKE
    valid: tuple[Tensor, Tensor] | None = None
    """Least and largest value of each channel (C, 1, 1), on the bank's device."""

    def batches(
        self,
        size: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        part: slice = WHOLE,
        student: nn.Module | None = None,
    ) -> Batches:
        """Crops of the bank's images, filtered and varied."""
        return BatchSource(
            self.bank,
            size,
            crop_scale,
            self.filter,
            self.seed,
            part,
            variety=self.variety,
            valid=self.valid,
        )

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Images from all over the bank."""
        return self.bank.take(spread(len(self.bank), count))
