"""A run's folder: what was asked, what happened and what came out; resumable after any kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from synq_fast.errors import RunFolderError
from synq_fast.storage.files import remove_leftovers, storage_errors, write_tensors, write_text
from synq_fast.storage.history import History, HistoryRecord

__all__ = ["HistoryRecord", "RunFolder"]

_IDENTITY = "run.json"


class RunFolder:
    """Paths and small files of one run.

    ``run.json`` identity, ``about.json`` network, versions and machine, ``recipe.toml`` resolved
    recipe, ``log.jsonl`` history, ``metrics.json`` results, ``bank/`` synthetic images,
    ``bank-001/`` and so on those made again in turn with training,
    ``samples.safetensors`` and ``images.jsonl`` some of a generator's and its history,
    ``model.safetensors``; of stages that train or calibrate ``checkpoint.safetensors``,
    ``calibration.safetensors`` and so on, and the ones before them,
    ``checkpoint.previous.safetensors``.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        recipe: str,
        resume: bool,
    ) -> None:
        """Create the folder, or open the one that an interrupted run left.

        Args:
            path: the folder.
            identity: what makes this run the same run: teacher, bits, seed and so on.
            recipe: the resolved recipe as TOML.
            resume: continue in an existing folder.

        Raises:
            RunFolderError: the folder is there without ``resume``, is missing with it, or belongs
                to another run (the message says what differs).
            StorageError: the folder cannot be written.
        """
        self.path = path
        remove_leftovers(path)
        known = path / _IDENTITY
        if resume:
            self._check_same_run(known, {**identity, "recipe": recipe})
        else:
            with storage_errors(path):
                taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
                if not taken:
                    path.mkdir(parents=True, exist_ok=True)
            if taken:
                way_out = "add --resume (resume=True) to continue it, or choose another folder"
                raise RunFolderError(f"the run folder {path} exists already; {way_out}")
            text = json.dumps({**identity, "recipe": recipe}, indent=2) + "\n"
            write_text(known, text)
        write_text(path / "recipe.toml", recipe)

    def _check_same_run(self, known: Path, identity: Mapping[str, Any]) -> None:
        try:
            found = json.loads(known.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.path} holds no run to resume ({error}); start it without --resume"
            ) from error
        different = [key for key, value in identity.items() if found.get(key) != value]
        if different:
            raise RunFolderError(
                f"{self.path} belongs to a run with another {', '.join(different)}; resume with "
                f"the arguments that the run was started with, or choose another folder"
            )

    def checkpoint(self, name: str) -> Path:
        """A stage's last complete checkpoint."""
        return self.path / f"{name}.safetensors"

    @property
    def history(self) -> History:
        """The records of training."""
        return History(self.path / "log.jsonl")

    @property
    def samples(self) -> Path:
        """Some of the images of a generator, which keeps no bank."""
        return self.path / "samples.safetensors"

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.path / "model.safetensors"

    def read_history(self, source: Mapping[str, str], last_step: int) -> list[HistoryRecord]:
        """The records of one training up to a step; see ``History.read``."""
        return self.history.read(source, last_step)

    def append_history(self, record: HistoryRecord) -> None:
        """Add one line to the log."""
        self.history.append(record)

    def read_metrics(self) -> dict[str, Any]:
        """What was measured before an interruption; empty where nothing was."""
        try:
            found: dict[str, Any] = json.loads((self.path / "metrics.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace ``metrics.json``."""
        write_text(self.path / "metrics.json", json.dumps(metrics, indent=2) + "\n")

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Replace ``about.json``: what reports say of a run, on which nothing depends."""
        write_text(self.path / "about.json", json.dumps(about, indent=2) + "\n")

    def write_samples(self, images: Tensor, labels: Tensor) -> None:
        """Replace the samples (N, C, H, W) of a generator's images, in half precision."""
        write_tensors(self.samples, {"images": images.half(), "labels": labels})
