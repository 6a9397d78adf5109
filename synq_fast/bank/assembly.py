"""From shards to a bank, in memory or in the files."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from synq_fast.bank.images import Bank, BankFolder, ImageBank
from synq_fast.bank.streamed import StreamedBank
from synq_fast.errors import RecipeError, SynqFastError
from synq_fast.runtime.memory import free_memory

MEMORY_SHARE = 0.5
"""Share of the free memory that a bank may take; the rest is for networks and activations."""


def streams(placement: str, size: int, device: torch.device, store: BankFolder | None) -> bool:
    """Whether a bank is to be read from its files.

    Args:
        placement: "memory", "stream", or "auto": from the files where there are any and the images
            would take more than ``MEMORY_SHARE`` of what is free on the device.
        size: bytes of the images.
        device: where batches are wanted.
        store: the folder of the shards, if they are written.

    Raises:
        RecipeError: "stream" without a folder.
    """
    if placement == "stream" and store is None:
        raise RecipeError(
            'finetune.bank = "stream" reads the images from their files: name a folder for them '
            'with --output or --bank (output= or bank=), or set finetune.bank = "memory"'
        )
    if placement != "auto" or store is None:
        return placement == "stream"
    return size > MEMORY_SHARE * free_memory(device)


class BankAssembly:
    """Joins shards, in whatever order they come, into one bank on a device.

    In memory each is copied to its place at once, so that one bank and one shard are the most that
    is held. A streamed bank holds what ``BankFolder`` maps.
    """

    def __init__(
        self,
        counts: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        streamed: bool,
    ) -> None:
        """Prepare for shards of ``counts`` images (C, H, W)."""
        self._counts, self._shape, self._device, self._streamed = counts, shape, device, streamed
        self._mapped: dict[int, ImageBank] = {}
        self._joined: tuple[Tensor, Tensor] | None = None

    def put(self, index: int, shard: ImageBank) -> None:
        """Add the shard of an index.

        Raises:
            SynqFastError: there is no memory for the images.
        """
        if self._streamed:
            self._mapped[index] = shard
            return
        if self._joined is None:  # not before: until the first shard comes, synthesis has the room
            self._joined = self._allocated()
        start = sum(self._counts[:index])
        for joined, part in zip(self._joined, (shard.images, shard.labels), strict=True):
            joined[start : start + len(shard)] = part

    def bank(self) -> Bank:
        """The bank of all shards in order."""
        if self._joined is None:
            return StreamedBank([self._mapped[i] for i in range(len(self._counts))], self._device)
        return ImageBank(*self._joined)

    def _allocated(self) -> tuple[Tensor, Tensor]:
        total = sum(self._counts)
        shape, device = (total, *self._shape), self._device
        try:
            images = torch.empty(
                shape, dtype=torch.float32, device=device, memory_format=torch.channels_last
            )
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU raises a plain one
            raise SynqFastError(
                f"no memory on {device} for {total} synthetic images "
                f'({4 * prod(shape) / 1e9:.1f} GB); set finetune.bank = "stream" to read them from '
                f"their files"
            ) from error
        return images, torch.empty(total, dtype=torch.int64, device=device)
