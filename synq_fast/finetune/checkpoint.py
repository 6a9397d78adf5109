"""Checkpoints of a fine-tuning run: everything that its next step depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from synq_fast.errors import CheckpointError
from synq_fast.optimize.optimizer_state import optimizer_tensors, restore_optimizer
from synq_fast.storage.checkpoint_file import CheckpointFile

_MODEL, _WINDOW = "model.", "window"


@dataclass
class Position:
    """How far a run is."""

    step: int = 0
    """Steps done."""
    micro_batch: int = 0
    """Images per pass, smaller than a batch once memory ran out; 0 while all fit."""
    window: list[Tensor] = field(default_factory=list)
    """The terms (terms,) of each step since the last record."""


def save_checkpoint(
    file: CheckpointFile,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    fingerprint: str,
) -> None:
    """Write model, ranges, optimizer state and position.

    Random states are not needed: every step seeds its own generators from its number.

    Raises:
        StorageError: it cannot be written; the last checkpoints stay.
    """
    tensors = {_MODEL + name: value for name, value in student.state_dict().items()}
    tensors |= optimizer_tensors(optimizer)
    if position.window:
        tensors[_WINDOW] = torch.stack(position.window)
    numbers = {"step": str(position.step), "micro_batch": str(position.micro_batch)}
    file.write(tensors, {**numbers, "fingerprint": fingerprint})


def load_checkpoint(
    file: CheckpointFile, student: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> Position | None:
    """Restore what ``save_checkpoint`` wrote; None, and nothing changed, where there is none.

    Raises:
        CheckpointError: all checkpoints are damaged, or they were written by another run.
    """
    try:
        found = file.read()
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; delete them and resume to calibrate and fine-tune again from the images, "
            f"which are kept"
        ) from error
    if found is None:
        return None
    tensors, metadata = found
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"the checkpoint {file.path} belongs to another model, recipe, bit width or seed; "
            f"resume with what the run was started with, or choose another run folder"
        )
    student.load_state_dict(
        {name.removeprefix(_MODEL): v for name, v in tensors.items() if name.startswith(_MODEL)}
    )
    restore_optimizer(optimizer, tensors)
    window = list(tensors[_WINDOW]) if _WINDOW in tensors else []
    return Position(int(metadata["step"]), int(metadata["micro_batch"]), window)
