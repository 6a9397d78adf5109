"""The last two states of a long computation on disk, so that one damaged file loses little."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from synq_fast.errors import CheckpointError, SynqFastWarning
from synq_fast.storage.files import read_tensors, write_tensors

_LARGEST_SHARE = 0.05


class CheckpointFile:
    """A checkpoint and the one before it, ``NAME.safetensors`` and ``NAME.previous.safetensors``.

    A kill at any moment leaves at least one of them whole.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        """Keep checkpoints at ``path``, due every ``seconds``; 0 makes them always due.

        On a disk so slow that saving would take more than a twentieth of the time, they are rarer.
        """
        self.path, self.seconds = path, seconds
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        self._damaged = False
        self._saved, self._cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether the last checkpoint of this process, or its start, is long enough ago."""
        pause = max(self.seconds, self._cost / _LARGEST_SHARE) if self.seconds else 0.0
        return time.monotonic() - self._saved >= pause

    def write(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Add a checkpoint; the last one becomes the previous one.

        Raises:
            StorageError: it cannot be written; both files stay as they are.
        """
        # A damaged file must not take the place of the good one that was used instead.
        previous = None if self._damaged else self.previous
        began = time.monotonic()
        write_tensors(self.path, tensors, metadata, previous=previous)
        self._damaged, self._saved = False, time.monotonic()
        self._cost = self._saved - began

    def read(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and metadata of the last checkpoint that is whole; None where there is none.

        Warns:
            SynqFastWarning: the last checkpoint is damaged or missing and the one before is used.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        found = [path for path in (self.path, self.previous) if path.exists()]
        damage: list[str] = []
        for path in found:
            try:
                content = read_tensors(path, checked=True)
            except OSError as error:
                damage.append(f"{path} ({error})")
                continue
            self._damaged = bool(damage)
            if path is self.previous:
                reason = f"{damage[0]} is damaged" if damage else f"{self.path} is missing"
                warnings.warn(
                    f"the checkpoint {reason}; going on from the one before it, {path}: the work "
                    f"between them is done again",
                    SynqFastWarning,
                    stacklevel=2,
                )
            return content
        if damage:
            raise CheckpointError(f"no whole checkpoint is left: damaged are {', '.join(damage)}")
        return None

    def discard(self) -> None:
        """Delete both files, where they are."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)
