"""Keeps glibc from handing every large tensor's memory back to the kernel."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 1 << 30


def keep_freed_memory() -> bool:
    """Let freed blocks of up to 1 GiB be used again instead of being unmapped.

    By default each new tensor above 32 MiB pays a page fault for every 4 KiB; a training step
    allocates the same sizes over and over. Affects the whole process, on Linux with glibc only.

    Returns:
        Whether the allocator took the setting.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LIMIT)) and bool(mallopt(_M_TRIM_THRESHOLD, _LIMIT))


def can_keep_freed_memory() -> bool:
    """Whether ``keep_freed_memory`` has an allocator here that it can set."""
    return _mallopt() is not None


def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
