"""The values of many images between the blocks of both networks, in memory or in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from synq_fast.graph.blocks import Block, subnetwork
from synq_fast.quant import held_weights
from synq_fast.runtime.memory import free_memory, send
from synq_fast.runtime.precision import tensor_float32
from synq_fast.storage.files import storage_errors

# At most four arrays are held at once: three of a block, and the next one that is made.
_MEMORY_SHARE = 0.5 / 4


class Cache:
    """Makes room for values."""

    def __init__(self, where: str, device: torch.device, folder: Path | None) -> None:
        """Prepare.

        Args:
            where: "memory", "files", or "auto".
            device: where batches are wanted.
            folder: of the files, of this process alone, made and removed; None: only memory.
        """
        self.where, self.device, self.folder = where, device, folder

    def empty(self, count: int, shape: torch.Size) -> Tensor:
        """Room for ``count`` values (count, ...) of ``shape`` (...), float32."""
        elements = count * math.prod(shape)
        folder = self._folder(4 * elements)
        if folder is None:
            flat = torch.empty(elements, dtype=torch.float32, device=self.device)
        else:
            path = folder / "values.bin"
            with storage_errors(path):
                folder.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                flat = torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
                # The map keeps the file's memory; names would outlive a killed process.
                path.unlink()
                with suppress(OSError):  # some network file systems keep a name until the end
                    folder.rmdir()
        if len(shape) != 3:
            return flat.view(count, *shape)
        channels, height, width = shape
        return flat.view(count, height, width, channels).permute(0, 3, 1, 2)

    def _folder(self, size: int) -> Path | None:
        fits = size <= _MEMORY_SHARE * free_memory(self.device)
        return None if self.where == "memory" or (self.where == "auto" and fits) else self.folder

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


@dataclass(frozen=True)
class BlockValues:
    """What a block reads in the quantized and in the float network, and what it should give."""

    inputs: Tensor
    """(N, ...) of the quantized network."""
    floats: Tensor
    """(N, ...) of the float network."""
    targets: Tensor
    """(N, ...) what the float block makes of ``floats``."""
    ends: Tensor | None = None
    """(N, ...) the last block's input in the float network, where a loss compares it."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.inputs)

    def take(self, chosen: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """The rows ``chosen`` (B,) of each, on a device."""
        stored = (self.inputs, self.floats, self.targets, self.ends)
        return tuple(send(v[chosen.to(v.device)], device) for v in stored if v is not None)


class NetworkValues:
    """Follows the images through both networks, block by block, as far as somebody asks."""

    def __init__(
        self,
        teacher: fx.GraphModule,
        student: fx.GraphModule,
        blocks: Sequence[Block],
        images: Callable[[], Tensor],
        cache: Cache,
        batch_size: int,
        *,
        ends: bool,
        precision: str = "float32",
    ) -> None:
        """Prepare.

        Args:
            teacher: the float network.
            student: the quantized one; a block's value is that of its weights at the time when
                a later block is asked for.
            blocks: where they are cut.
            images: makes the images (N, C, H, W), once.
            cache: where values are kept.
            batch_size: images that go through a network together.
            ends: also give the last block's input.
            precision: of products and convolutions on a GPU, "tf32" or else float32.
        """
        self.teacher, self.student, self.blocks = teacher, student, blocks
        self.images, self.cache, self.batch_size = images, cache, batch_size
        self._wants_ends, self.precision = ends, precision
        self._at = -1
        self._held: BlockValues | None = None

    def of(self, index: int) -> BlockValues:
        """The values of a block; indices never fall."""
        if self._held is None:
            images = self.images()
            ends = None
            if self._wants_ends:
                whole = Block(self.blocks[0].entry, self.blocks[-1].entry)
                ends = self._through(self.teacher, whole, images)
            self._held = self._values(0, images, images, ends)
            self._at = 0
        while self._at < index:
            held, block = self._held, self.blocks[self._at]
            quantized = self._through(self.student, block, held.inputs)
            self._at += 1
            self._held = self._values(self._at, quantized, held.targets, held.ends)
        return self._held

    def _values(
        self, index: int, inputs: Tensor, floats: Tensor, ends: Tensor | None
    ) -> BlockValues:
        targets = self._through(self.teacher, self.blocks[index], floats)
        return BlockValues(inputs, floats, targets, ends)

    @torch.no_grad()
    def _through(self, network: fx.GraphModule, block: Block, values: Tensor) -> Tensor:
        part = subnetwork(network, block.entry, block.exit)
        batches = values.split(self.batch_size)
        with held_weights(part), tensor_float32(self.precision == "tf32"):
            made = (part(send(batch, self.cache.device)) for batch in batches)
            return self.cache.filled(len(values), made)
