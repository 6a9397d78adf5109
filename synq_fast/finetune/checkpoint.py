"""Checkpoints of a fine-tuning run: everything that its next step depends on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from synq_fast.errors import CheckpointError
from synq_fast.files import read_tensors, write_tensors

_MODEL, _OPTIMIZER = "model.", "optimizer."


def save_checkpoint(
    path: Path, student: nn.Module, optimizer: torch.optim.Optimizer, step: int, fingerprint: str
) -> None:
    """Write model, ranges, optimizer state and step; the old file stays until the new is whole.

    Random states are not needed: every step seeds its own generators from its number.
    """
    tensors = {_MODEL + name: value for name, value in student.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"{_OPTIMIZER}{index}.{name}": value
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    write_tensors(path, tensors, {"step": str(step), "fingerprint": fingerprint})


def load_checkpoint(
    path: Path, student: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> int:
    """Restore what ``save_checkpoint`` wrote and return the number of steps done.

    Raises:
        CheckpointError: the file is damaged, or was written by another run.
    """
    try:
        tensors, metadata = read_tensors(path)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({error}); delete it and resume to fine-tune again "
            f"from the calibrated model"
        ) from error
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another model, recipe, bit width or seed; resume "
            f"with what the run was started with, or choose another run folder"
        )
    student.load_state_dict(
        {name.removeprefix(_MODEL): v for name, v in tensors.items() if name.startswith(_MODEL)}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(metadata["step"])
