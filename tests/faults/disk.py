"""Disks that fail."""

import errno
import os

import pytest


def full_disk(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let the first ``after`` flushes to the disk succeed; then it is full."""
    flush, left = os.fsync, [after]

    def limited(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    patch.setattr(os, "fsync", limited)
