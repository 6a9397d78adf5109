"""A bank that stays in its files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synq_fast.bank.images import ImageBank
from synq_fast.runtime.memory import send


class StreamedBank:
    """Memory-mapped shards; ``take`` reads the images asked for and no others.

    The system keeps what it has read in its page cache as far as there is room, and gives that
    room up for anything else.
    """

    streamed = True

    def __init__(self, shards: Sequence[ImageBank], device: torch.device) -> None:
        """Serve shards as ``BankFolder.read`` maps them, in order, on a device."""
        self.device = device
        self.labels = torch.cat([shard.labels for shard in shards]).to(device)
        self._images = [shard.images for shard in shards]
        self._ends = torch.tensor([len(shard) for shard in shards], device="cpu").cumsum(0)
        self._starts = [0, *self._ends.tolist()]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of the numbers ``chosen`` (B,) int64."""
        numbers = chosen.cpu()
        shards = torch.bucketize(numbers, self._ends, right=True).tolist()
        views = [
            self._images[shard][number - self._starts[shard]]
            for shard, number in zip(shards, numbers.tolist(), strict=True)
        ]
        images = torch.empty(
            (len(views), *self._images[0].shape[1:]),
            dtype=torch.float32,
            device="cpu",
            pin_memory=self.device.type == "cuda",
        )
        torch.stack(views, out=images)
        return send(images, self.device), self.labels[send(chosen, self.device)]
