"""Telling a lack of memory from other errors, and explaining it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from synq_fast.errors import OutOfMemoryError

MORE_MEMORY = "free memory, or take a machine with more"
# PyTorch's CPU allocator; CUDA; cuBLAS and cuDNN; C++; oneDNN, which gives no reason.
_SIGNS = (
    "can't allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory object",
)

# Before what PyTorch's allocator for CPUs says: where in its source, and which condition.
_PLACE = re.compile(r"^\[enforce fail at [^]]*\] err == 0\. ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on any device."""
    if isinstance(error, OutOfMemoryError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def pass_on_memory_errors(error: BaseException) -> None:
    """Raise an error of an allocation again, before it is taken for something else."""
    if isinstance(error, OutOfMemoryError) or is_out_of_memory(error):
        raise error


def reason_of(error: BaseException) -> str:
    """The first sentence of an allocator's error, which says how much was asked for."""
    text = str(error).strip() or "no memory left"
    return _PLACE.sub("", text.splitlines()[0])[:160]


@contextmanager
def memory_errors(work: str, advice: str) -> Iterator[None]:
    """Explain an allocation that fails inside the block.

    Args:
        work: what was being done, e.g. ``"calibration"``.
        advice: what makes it smaller, e.g. ``"lower quantization.calibration_batch_size"``.

    Raises:
        OutOfMemoryError: in place of the allocator's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{work} ran out of memory ({reason_of(error)}); {advice}"
        ) from error
