"""Which of the processes of a run prints."""

from __future__ import annotations

import os
import sys


def world_size() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first_process() -> bool:
    """Whether this process is the one that prints: rank 0, or alone."""
    # A group can only be where torch is; to ask is no reason to import it.
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return bool(dist.get_rank() == 0)
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"
