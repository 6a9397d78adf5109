"""Image files decoded to uint8, by worker processes where there are enough of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from synq_fast.data.pictures import UnclearPictureError, picture_of
from synq_fast.errors import DataError
from synq_fast.runtime.defaults import plain_defaults

# The usual evaluation crop: a 224 window of an image whose shorter side is 256.
_RESIZE_RATIO = 256 / 224
# Starting the processes takes longer than decoding this many.
_FEW = 64
_MOST_WORKERS = 16
# Batches that a worker has ready or in the making: DataLoader's own default.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class ImageFiles(Dataset[Tensor | str]):
    """Image files cut to one shape; small enough to be handed to another process.

    An image that already has the height and width is used as it is; any other is resized (bilinear,
    antialiased) until its shorter side is 256/224 of the longer side asked for, and its centre is
    cut out.
    """

    name: str
    paths: list[Path]
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        """An image, or what is wrong with its file.

        An exception would reach the user as a traceback from another process.
        """
        try:
            return self.decode(index)
        except DataError as error:
            return str(error)

    def decode(self, index: int) -> Tensor:
        """An image (C, H, W) uint8.

        Raises:
            DataError: the file is not an image, or shows no one picture (see `picture_of`).
        """
        from PIL import Image
        from torchvision.transforms.v2 import functional as tv

        channels, height, width = self.shape
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = picture_of(file, "L" if channels == 1 else "RGB")
            if (image.height, image.width) != (height, width):
                shorter = round(max(height, width) * _RESIZE_RATIO)
                image = tv.resize(image, [shorter], antialias=True)
                image = tv.center_crop(image, [height, width])
            pixels: Tensor = tv.pil_to_tensor(image)
        except UnclearPictureError as error:
            raise DataError(f"{self.name}: {path} is not one clear picture: {error}") from error
        except Exception as error:  # a damaged file makes a decoder raise nearly anything
            raise DataError(f"{self.name}: {path} is not a readable image ({error})") from error
        return pixels


def default_workers(files: ImageFiles, batch_size: int) -> int:
    """Worker processes that suit the machine and the number of images.

    One for each processor that this process may use, as far as their batches fit into the shared
    memory that they hand them over in: containers often have 64 MiB of it.
    """
    if len(files) <= _FEW or multiprocessing.current_process().daemon:  # no children allowed
        return 0
    size = prod(files.shape) * min(batch_size, len(files))
    batches = -(-len(files) // batch_size)
    fitting = _shared_memory() // ((_BATCHES_AHEAD + 1) * size)
    return min(_processors(), _MOST_WORKERS, batches, fitting)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shared_memory() -> int:
    try:
        room = os.statvfs("/dev/shm")
    except (AttributeError, OSError):  # not Linux: shared memory is not bounded there
        return 1 << 40
    return room.f_bavail * room.f_frsize


def _stacked(images: list[Tensor | str]) -> Tensor | str:
    problems = [image for image in images if isinstance(image, str)]
    return problems[0] if problems else torch.stack([i for i in images if isinstance(i, Tensor)])


def decoded_batches(
    files: ImageFiles, batch_size: int, *, workers: int, pinned: bool
) -> Iterator[Tensor]:
    """All images in order, (B, C, H, W) uint8.

    Args:
        files: what to decode.
        batch_size: images in each batch but the last.
        workers: processes that decode ahead; with 0, this one decodes when asked.
        pinned: put the batches into pinned memory, for a GPU.

    Raises:
        DataError: a file is not an image (the message names it), or a worker was killed.
    """
    # Imported once here, not once in every worker.
    import torchvision.transforms.v2.functional  # noqa: F401

    loader = DataLoader(
        files,
        batch_size,
        num_workers=workers,
        pin_memory=pinned,
        collate_fn=_stacked,
        prefetch_factor=_BATCHES_AHEAD if workers else None,
        generator=torch.Generator(),  # leaves the caller's random numbers alone
    )
    with plain_defaults():
        batches, trouble = iter(loader), ""
    try:
        while not trouble:
            try:
                batch = next(batches, None)
            except Exception as error:  # a connection to a dead process fails in many ways
                if not workers:
                    raise
                trouble = str(error) or type(error).__name__
                with suppress(RuntimeError):  # the signal of its death raises as well
                    time.sleep(0.1)
                continue
            if batch is None:
                return
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch
    finally:
        del batches  # ends the processes now, not when the exception is forgotten
    raise DataError(_advice(trouble))


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Explain a death of a worker, which PyTorch raises wherever the main thread is just then.

    Raises:
        DataError: in place of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(_advice(str(error))) from error


def _advice(trouble: str) -> str:
    return (
        f"a process that decodes images has ended ({trouble}). Where memory is short, in /dev/shm "
        f"above all (docker: --shm-size=1g), take fewer workers or a smaller batch; workers=0 "
        f"decodes in this process"
    )
