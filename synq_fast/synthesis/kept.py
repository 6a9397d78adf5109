"""What synthesis keeps on disk until a shard of images is whole."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from synq_fast.errors import SynqFastWarning
from synq_fast.storage.checkpoint_file import CheckpointFile
from synq_fast.storage.files import read_tensors, write_tensors


class Kept:
    """Unfinished optimizations, and results that are no shard, in a bank's folder."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Keep them in ``folder``, checkpoints written every ``seconds``."""
        self.folder, self.seconds = folder, seconds

    def checkpoint(self, name: str) -> CheckpointFile:
        """That of one optimization, e.g. ``shard-00000``."""
        return CheckpointFile(self.folder / f"{name}.partial.safetensors", self.seconds)

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
        self.checkpoint(name).discard()  # a kill may have come before
        return images

    def write_result(self, name: str, images: Tensor) -> None:
        """Keep the images of a finished optimization, whose checkpoint is of no use any more.

        Raises:
            StorageError: they cannot be written; the checkpoint stays.
        """
        write_tensors(self._result(name), {"images": images})
        self.checkpoint(name).discard()

    def _result(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
