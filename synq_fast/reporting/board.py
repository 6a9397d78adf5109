"""The records of a run and some of its images as TensorBoard reads them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from synq_fast.runtime.extras import needs
from synq_fast.storage.files import storage_errors

_SOURCE = ("stage", "round", "batch", "block")
_STEP = "step"


class Board:
    """Event files that follow from the log alone.

    Each process writes them anew, from the records that it goes on from and those that it makes, so
    that a resumed run has every point once.
    """

    images = 64
    """How many images are shown at most."""

    def __init__(self, folder: Path) -> None:
        """Write into ``folder``, from the first record on.

        Raises:
            ArgumentError: TensorBoard is not installed.
        """
        self.folder = folder
        self._kind = _writer_kind()
        self._writer: Any = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Show each figure of a record as a scalar at its step, under what says whose it is.

        Raises:
            StorageError: the folder cannot be written.
        """
        prefix = "/".join(_named(key, record[key]) for key in _SOURCE if key in record)
        for name, value in record.items():
            if name not in (*_SOURCE, _STEP):
                with storage_errors(self.folder):
                    self.writer.add_scalar(f"{prefix}/{name}", value, record[_STEP])

    def add_images(self, name: str, images: Tensor, step: int) -> None:
        """Show a sheet of images (B, C, H, W) between 0 and 1.

        Of other numbers of channels than 1 and 3 the first is shown.

        Raises:
            StorageError: the folder cannot be written.
        """
        if images.shape[1] not in (1, 3):
            images = images[:, :1]
        with storage_errors(self.folder):
            self.writer.add_images(f"images/{name}", images.float().cpu(), step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            with storage_errors(self.folder):
                self._writer.close()
            self._writer = None

    @property
    def writer(self) -> Any:
        """Opened when there is something to write, in the place of an earlier process's files."""
        if self._writer is None:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in self.folder.glob("events.out.tfevents.*"):
                    with suppress(FileNotFoundError):
                        path.unlink()
                # The step from which a TensorBoard that is running forgets what it has read.
                self._writer = self._kind(str(self.folder), purge_step=0)
        return self._writer


def _named(key: str, value: Any) -> str:
    return f"batch-{value:05d}" if key == "batch" else str(value)


def _writer_kind() -> Any:
    needs("tensorboard", "--tensorboard (tensorboard=True)")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
