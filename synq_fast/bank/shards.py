"""The shards of one bank, wherever they are: in the folder, in memory or at another rank."""

from __future__ import annotations

from collections.abc import Iterator

from synq_fast.bank.images import BankFolder, ImageBank
from synq_fast.distributed import Ranks


class Shards:
    """Keeps what was made, knows what nobody has, and brings all of it to every rank.

    The folder may be on a file system that all ranks share, or one per machine: what a rank cannot
    see is sent to it, and written to its own folder.
    """

    def __init__(self, count: int, folder: BankFolder | None, ranks: Ranks) -> None:
        """Look for the shards 0 to ``count - 1`` in the folder; every rank makes one of these."""
        self.count, self.folder, self.ranks = count, folder, ranks
        self.found: dict[int, ImageBank] = {}
        """The shards that this rank has, by number."""
        self._look()

    def missing(self) -> list[int]:
        """Numbers of the shards that no rank has, the same on every rank."""
        seen = set().union(*self.ranks.collect(list(self.found)))
        return [index for index in range(self.count) if index not in seen]

    def add(self, index: int, shard: ImageBank) -> None:
        """Keep a shard that this rank has made."""
        # Beside shards from the folder, which are on the CPU.
        shard = ImageBank(shard.images.cpu(), shard.labels.cpu())
        self.found[index] = shard if self.folder is None else self.folder.write(index, shard)

    def gather(self) -> Iterator[tuple[int, ImageBank]]:
        """All shards by number, once every rank has made its own; without a folder, only once."""
        self.ranks.wait()
        self._look()
        held = {index: (shard.images, shard.labels) for index, shard in self.found.items()}
        for index, tensors in enumerate(self.ranks.share(held, self.count)):
            shard = self.found.pop(index, None) or ImageBank(*tensors)
            seen = held.pop(index, None) is not None
            if self.folder is not None and not seen:
                shard = self.folder.write(index, shard)
            yield index, shard

    def _look(self) -> None:
        for index in range(self.count):
            if self.folder is not None and index not in self.found:
                shard = self.folder.read(index)
                if shard is not None:
                    self.found[index] = shard
