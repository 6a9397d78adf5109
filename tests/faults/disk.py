"""Disks that fail."""

import errno
import os

import pytest


def full_disk(patch: pytest.MonkeyPatch, after: float) -> list[int]:
    """Let the first ``after`` flushes to the disk succeed; then it is full.

    Returns:
        A list whose only item counts the flushes.
    """
    flush, count = os.fsync, [0]

    def limited(descriptor: int) -> None:
        count[0] += 1
        if count[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    patch.setattr(os, "fsync", limited)
    return count
