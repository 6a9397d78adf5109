"""Which device a process works on."""

from __future__ import annotations

import os

import torch

from synq_fast.errors import SynqFastError


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for, or a GPU where there is one.

    Under torchrun "a GPU" is the one of the process's LOCAL_RANK.

    Raises:
        SynqFastError: this machine has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is not None and str(device) == "cuda" and torch.cuda.is_available():
        if int(local_rank) >= torch.cuda.device_count():
            raise SynqFastError(
                f"this is process {int(local_rank) + 1} on a machine with "
                f"{torch.cuda.device_count()} GPUs; start one process per GPU "
                f"(--nproc-per-node={torch.cuda.device_count()}), or work on --device cpu"
            )
        return torch.device("cuda", int(local_rank))
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SynqFastError(f'cannot work on device "{device}": {reason}') from error
