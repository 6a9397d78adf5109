"""Checkpoints inside one batch of images: a long optimization that is killed goes on from there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from synq_fast.errors import CheckpointError, SynqFastWarning
from synq_fast.storage.checkpoint_file import CheckpointFile
from synq_fast.storage.files import read_tensors, write_tensors


class PixelCheckpoint:
    """Everything that decides how one optimization of pixels goes on."""

    def __init__(self, path: Path, seconds: float) -> None:
        """Keep it at ``path``, written every ``seconds``."""
        self.file = CheckpointFile(path, seconds)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.file.due

    def write(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Keep the state after ``done`` steps.

        Images that are not finite are not kept: the next look at the losses will stop the run.

        Raises:
            StorageError: it cannot be written; the last checkpoint stays.
        """
        if tensors["images"].isfinite().all():
            self.file.write(tensors, {"done": str(done)})

    def read(self) -> tuple[dict[str, Tensor], int] | None:
        """What ``write`` kept, the state and the number of steps done; None where nothing is.

        Warns:
            SynqFastWarning: what is there is damaged, so some or all steps are done again.
        """
        try:
            found = self.file.read()
        except CheckpointError as error:
            warnings.warn(f"{error}; making this batch again", SynqFastWarning, stacklevel=2)
            self.file.discard()
            return None
        return None if found is None else (found[0], int(found[1]["done"]))

    def discard(self) -> None:
        """Delete it: its result is kept elsewhere."""
        self.file.discard()


class PixelCheckpoints:
    """What synthesis keeps in the bank's folder beside the finished shards."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Keep it in ``folder``, written every ``seconds``."""
        self.folder, self.seconds = folder, seconds

    def of(self, name: str) -> PixelCheckpoint:
        """The checkpoint of one optimization, e.g. ``shard-00000``."""
        return PixelCheckpoint(self.folder / f"{name}.partial.safetensors", self.seconds)

    def read_result(self, name: str) -> Tensor | None:
        """Images that ``write_result`` kept, None where they must be made.

        Warns:
            SynqFastWarning: the file is damaged.
        """
        path = self._result(name)
        if not path.exists():
            return None
        try:
            images = read_tensors(path, checked=True)[0]["images"]
        except (OSError, KeyError) as error:
            text = f"{path} is damaged ({error}); making these images again"
            warnings.warn(text, SynqFastWarning, stacklevel=2)
            return None
        self.of(name).discard()  # a kill may have come before
        return images

    def write_result(self, name: str, images: Tensor) -> None:
        """Keep the images of a finished optimization, whose checkpoint is of no use any more.

        Raises:
            StorageError: they cannot be written; the checkpoint stays.
        """
        write_tensors(self._result(name), {"images": images})
        self.of(name).discard()

    def _result(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
