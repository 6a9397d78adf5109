"""Batches of a bank that is made again while they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from synq_fast.bank.batches import Batches
from synq_fast.bank.prefetch import Tensors

Renew = Callable[[int, bool], Batches]
"""Batches of the images of a round, from 1; True: those that an earlier process has finished."""


class RefreshedBatches:
    """Batches of round 0 up to the step ``every``, then those of the next round, and so on.

    What a round's images are made against is the network as training has left it: a step asks for
    its batch before it changes anything. A killed run goes on before the round or within it, and
    so finds the same images.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, first: Batches, every: int, renew: Renew) -> None:
        """Prepare.

        Args:
            first: batches of round 0.
            every: steps of each round.
            renew: makes a round's images, or finds them.
        """
        self.batches, self.every, self.renew = first, every, renew
        self.round = 0

    def inputs(self, step: int) -> Tensors:
        """Those of the step's round, whose images are made if need be."""
        wanted = step // self.every
        if wanted != self.round:
            self._turn(wanted, False)
        return self.batches.inputs(step)

    def _turn(self, number: int, found: bool) -> None:
        self.batches.close()
        self.batches, self.round = self.renew(number, found), number

    def made(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, H, W) and labels (B,) of what ``inputs`` gave."""
        return self.batches.made(*inputs)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a step."""
        images, labels, _ = self.made(*self.inputs(step))
        return images, labels

    def state(self) -> dict[str, Tensor]:
        """The number of the round; its images are in their folder."""
        return {"round": torch.tensor(self.round, dtype=torch.int64, device="cpu")}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on in a round."""
        number = int(tensors["round"])
        if number != self.round:
            self._turn(number, True)

    def close(self) -> None:
        """End what runs in the background."""
        self.batches.close()
