"""The shards of one bank, wherever they are: in the folder, in memory or at another rank."""

from __future__ import annotations

from collections.abc import Iterator

from synq_fast.distributed import Ranks
from synq_fast.synthesis.bank import BankFolder, ImageBank


class Shards:
    """Keeps what was made, knows what nobody has, and brings all of it to every rank.

    The folder may be on a file system that all ranks share, or one per machine: what a rank cannot
    see is sent to it, and written to its own folder.
    """

    def __init__(self, count: int, folder: BankFolder | None, ranks: Ranks) -> None:
        """Look for the shards 0 to ``count - 1`` in the folder; every rank makes one of these."""
        self.count, self.folder, self.ranks = count, folder, ranks
        self.found: dict[int, ImageBank] = {}
        """What this rank has."""
        self._look()

    def missing(self) -> list[int]:
        """Numbers of the shards that no rank has, the same on every rank."""
        seen = set().union(*self.ranks.collect(list(self.found)))
        return [index for index in range(self.count) if index not in seen]

    def add(self, index: int, shard: ImageBank) -> None:
        """Keep a shard that this rank has made."""
        # On the CPU, as those from the folder and from other ranks.
        self.found[index] = ImageBank(shard.images.cpu(), shard.labels.cpu())
        if self.folder is not None:
            self.folder.write(index, self.found[index])

    def gather(self) -> Iterator[ImageBank]:
        """All shards in order, once every rank has made its own."""
        self.ranks.wait()
        self._look()
        held = {index: (shard.images, shard.labels) for index, shard in self.found.items()}
        for index, tensors in enumerate(self.ranks.share(held, self.count)):
            shard = self.found.get(index) or ImageBank(*tensors)
            if self.folder is not None and index not in self.found:
                self.folder.write(index, shard)
            yield shard

    def _look(self) -> None:
        for index in range(self.count):
            if self.folder is not None and index not in self.found:
                shard = self.folder.read(index)
                if shard is not None:
                    self.found[index] = shard
