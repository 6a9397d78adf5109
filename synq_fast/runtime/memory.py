"""How much memory is free, and how tensors get to a GPU without the host waiting."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

# Limit, use, and the line of memory.stat that holds reclaimable cache, by version of cgroups.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device, a GPU's own or the machine's.

    The machine's memory counts up to the limit of the container or job (cgroups), and processes
    that torchrun started side by side share it.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return machine_memory() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def machine_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that this machine and this process's control groups leave free."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return _all_memory()
    return min(int(available.split()[1]) * 1024, *_left_in_groups(proc, groups), sys.maxsize)


def _all_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return sys.maxsize


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each control group above this process still allows; page cache can be taken back."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controller, path = line.split(":", 2)
        if controller not in _GROUP_FILES:
            continue
        root = groups / controller
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(root):
                yield from _left_in_group(folder, *_GROUP_FILES[controller])


def _left_in_group(folder: Path, limit: str, used: str, cache: str) -> Iterator[int]:
    try:
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield max(0, left + int(stat.get(cache, 0)))
    except (OSError, ValueError):  # no such group here, or its limit is "max"
        return


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; towards a GPU through pinned memory, so that nothing waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
