"""The image bank: labelled synthetic images, shard by shard so that nothing is made twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from synq_fast.errors import DataError, RunFolderError
from synq_fast.runtime.memory import send
from synq_fast.storage.files import (
    read_rows,
    read_tensors,
    remove_leftovers,
    rows_of,
    storage_errors,
    write_tensors,
    write_text,
)

_CHECKED_AT_ONCE = 64


class Bank(Protocol):
    """Labelled images to draw from, wherever they are kept."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the device."""

    @property
    def device(self) -> torch.device:
        """Where ``take`` puts images and labels."""

    @property
    def streamed(self) -> bool:
        """Whether ``take`` reads files, so that reading ahead pays."""

    def __len__(self) -> int:
        """Number of images."""

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 and labels (B,) of the numbers ``chosen`` (B,) int64."""


@dataclass
class ImageBank:
    """Synthetic images (N, C, H, W) float32 in normalised space, and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    streamed = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __post_init__(self) -> None:
        """Refuse images that would poison every later step.

        Raises:
            DataError: an image holds NaN or infinity, or labels and images differ in number.
        """
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        bad = _not_finite(self.images)
        if bad:
            raise DataError(
                f"{len(bad)} of {len(self.images)} synthetic images hold NaN or infinity (first: "
                f"number {bad[0]}); synthesize them again"
            )

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of the numbers ``chosen`` (B,) int64."""
        chosen = send(chosen, self.device)
        return self.images[chosen], self.labels[chosen]


def _not_finite(images: Tensor) -> list[int]:
    """Numbers of the images that hold NaN or infinity, without a mask as large as the bank."""
    # NaN and infinity survive a sum, which costs a tenth of looking at every pixel.
    if images.sum().isfinite():
        return []
    finite = [part.isfinite().flatten(1).all(1) for part in images.split(_CHECKED_AT_ONCE)]
    numbers: list[int] = (~torch.cat(finite)).nonzero().flatten().tolist()
    return numbers


class BankFolder:
    """A folder of shards, ``shard-00000.safetensors`` and so on, for one fingerprint.

    The fingerprint says what the images depend on (teacher, synthesis section, seed); shards of
    another fingerprint are never mixed in.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open or create the folder.

        Raises:
            RunFolderError: the folder holds images for another fingerprint.
            DataError: the folder's manifest is damaged.
        """
        self.folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        manifest = folder / "bank.json"
        if manifest.exists():
            try:
                found = json.loads(manifest.read_text())["fingerprint"]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{manifest} is damaged; delete the folder {folder}") from error
            if found != fingerprint:
                raise RunFolderError(
                    f"{folder} holds images made from another teacher, seed or synthesis recipe; "
                    f"choose another folder or delete this one"
                )
        else:
            write_text(manifest, json.dumps({"fingerprint": fingerprint}) + "\n")

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.safetensors"

    def read(self, index: int) -> ImageBank | None:
        """The shard of an index, or None where it is not written yet.

        Its tensors are maps of the file: they take no memory of their own, and only the images
        that are used are read.

        Raises:
            DataError: the file is there but damaged.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            tensors, _ = read_tensors(path)
            return ImageBank(tensors["images"], tensors["labels"])
        except (KeyError, DataError, OSError) as error:
            raise DataError(
                f"the image shard {path} is damaged ({error}); delete this file and resume: only "
                f"its images are made again"
            ) from error

    def write(self, index: int, shard: ImageBank) -> ImageBank:
        """Write a shard and read it back; a kill at any moment leaves it absent or whole."""
        write_tensors(self._path(index), {"images": shard.images, "labels": shard.labels})
        written = self.read(index)
        assert written is not None
        return written


def sample_of(folder: Path, count: int) -> tuple[ImageBank, int] | None:
    """Up to ``count`` images from all over a folder of shards, and how many it holds.

    None where there are none. Only the images that are taken are read, and compared with nothing.

    Raises:
        DataError: a shard is damaged.
    """
    paths = sorted(folder.glob("shard-[0-9]*[0-9].safetensors"))
    try:
        sizes = [rows_of(path, "labels") for path in paths]
        if not sum(sizes):
            return None
        chosen = spread(sum(sizes), count)
        found, start = [], 0
        for path, size in zip(paths, sizes, strict=True):
            own = (chosen[(chosen >= start) & (chosen < start + size)] - start).tolist()
            start += size
            if own:
                found.append(read_rows(path, {"images": own, "labels": own}))
    except OSError as error:
        raise DataError(f"an image shard in {folder} is damaged ({error})") from error
    joined = {name: torch.cat([part[name] for part in found]) for name in ("images", "labels")}
    return ImageBank(joined["images"], joined["labels"]), sum(sizes)


def spread(total: int, count: int) -> Tensor:
    """Up to ``count`` different numbers below ``total``, evenly spaced, int64."""
    count = min(total, count)
    return torch.arange(count, device="cpu") * total // max(1, count)
