"""How many threads the engine computes with."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores that this process may keep busy: its affinity, within the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(cores, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):  # no control groups, or no limit
        return cores


def limit_threads() -> None:
    """Keep torch from using more threads than there are cores for them.

    Threads without a core of their own wait for each other in every op. The variable
    ``OMP_NUM_THREADS`` decides where it is set, and fewer threads stay fewer.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
