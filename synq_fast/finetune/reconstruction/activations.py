"""The values of many images at one place of a network, in memory or in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synq_fast.runtime.memory import free_memory, send
from synq_fast.storage.files import storage_errors

_MEMORY_SHARE = 0.5


class Cache:
    """Makes room for values; those of past blocks give theirs back."""

    def __init__(self, where: str, device: torch.device, folder: Path | None) -> None:
        """Prepare.

        Args:
            where: "memory", "files", or "auto".
            device: where batches are wanted.
            folder: of the files; None: only memory.
        """
        self.where, self.device, self.folder = where, device, folder
        self._made = 0

    def empty(self, count: int, shape: torch.Size) -> Tensor:
        """Room for ``count`` values (count, ...) of ``shape`` (...), float32."""
        size = 4 * count * math.prod(shape)
        files = self.where == "files" or (
            self.where == "auto" and size > _MEMORY_SHARE * free_memory(self.device) / 3
        )
        if not files or self.folder is None:
            room = torch.empty((count, *shape), dtype=torch.float32, device=self.device)
            return room.contiguous(memory_format=_format(room))
        self._made += 1
        path = self.folder / f"values-{self._made}.bin"
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            flat = torch.from_file(str(path), shared=True, size=size // 4, dtype=torch.float32)
            # The map keeps the file's memory; its name is not needed, nor left behind.
            path.unlink()
        if len(shape) == 3:
            channels, height, width = shape
            return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(count, *shape)

    def filled(self, count: int, parts: Iterator[Tensor]) -> Tensor:
        """The values that come in parts (B, ...), together (count, ...)."""
        room: Tensor | None = None
        done = 0
        for part in parts:
            if room is None:
                room = self.empty(count, part.shape[1:])
            room[done : done + len(part)] = part
            done += len(part)
        assert room is not None and done == count
        return room


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


@dataclass
class BlockValues:
    """What a block reads in the quantized and in the float network, and what it should give."""

    inputs: Tensor
    """(N, ...) of the quantized network."""
    floats: Tensor
    """(N, ...) of the float network."""
    targets: Tensor
    """(N, ...) what the float block makes of ``floats``."""
    ends: Tensor | None
    """(N, ...) the last block's input in the float network, where it is wanted."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.inputs)

    def take(self, chosen: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """The rows of some images, on a device."""
        stored = [self.inputs, self.floats, self.targets, self.ends]
        return tuple(
            send(values[chosen.to(values.device)], device) for values in stored if values is not None
        )


@torch.no_grad()
def in_parts(
    network: Callable[[Tensor], Tensor], values: Tensor, size: int, device: torch.device
) -> Iterator[Tensor]:
    """What a network makes of many values, ``size`` at a time."""
    for part in values.split(size):
        yield network(send(part, device))
