"""Checkpoints inside one batch of images: a long optimization that is killed goes on from there."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from synq_fast.checkpoint_file import CheckpointFile
from synq_fast.errors import CheckpointError, SynqFastWarning
from synq_fast.files import read_tensors, write_tensors
from synq_fast.optimizer_state import optimizer_tensors, restore_optimizer


class PixelCheckpoint:
    """Everything that decides how one optimization of pixels goes on."""

    def __init__(self, path: Path, seconds: float) -> None:
        """Keep it at ``path``, written every ``seconds``."""
        self.file = CheckpointFile(path, seconds)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.file.due

    def save(
        self,
        step: int,
        images: Tensor,
        optimizer: Optimizer,
        plateau: ReduceLROnPlateau,
        generator: torch.Generator,
    ) -> None:
        """Write images, optimizer, schedule, random state and the number of steps done.

        Images that are not finite are not written: the next step will stop the run.

        Raises:
            StorageError: it cannot be written; the last checkpoint stays.
        """
        if not images.isfinite().all():
            return
        tensors = {"images": images, "generator": generator.get_state()}
        rates = [group["lr"] for group in optimizer.param_groups]
        numbers = {"step": step, "rates": rates, "plateau": plateau.state_dict()}
        self.file.write(
            {**tensors, **optimizer_tensors(optimizer)}, {"numbers": json.dumps(numbers)}
        )

    @torch.no_grad()
    def restore(
        self,
        images: Tensor,
        optimizer: Optimizer,
        plateau: ReduceLROnPlateau,
        generator: torch.Generator,
    ) -> int:
        """Put back what ``save`` wrote, in place; returns the number of steps done.

        Warns:
            SynqFastWarning: what is there is damaged, so some or all steps are done again.
        """
        try:
            found = self.file.read()
        except CheckpointError as error:
            warnings.warn(f"{error}; making this batch again", SynqFastWarning, stacklevel=2)
            self.file.discard()
            return 0
        if found is None:
            return 0
        tensors, metadata = found
        numbers = json.loads(metadata["numbers"])
        images.copy_(tensors["images"])
        generator.set_state(tensors["generator"])
        restore_optimizer(optimizer, tensors)
        for group, rate in zip(optimizer.param_groups, numbers["rates"], strict=True):
            group["lr"] = rate
        plateau.load_state_dict(numbers["plateau"])
        return int(numbers["step"])

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
