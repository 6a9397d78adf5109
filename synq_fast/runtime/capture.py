"""Capturing work in a CUDA graph so that a failure leaves the process as it was.

A capture that waits for the device fails where it ends, and PyTorch's allocator and random numbers
would believe for ever that it goes on. So a call before it shows whether the work waits, and what
fails all the same is put back here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def warm_up(
    work: Callable[[], _Result], device: torch.device, *, must_not_wait: bool = False
) -> _Result:
    """Call the work on the stream that captures it: lazy initialisations must happen before that.

    Args:
        work: called without arguments.
        device: the GPU that it works on.
        must_not_wait: raise what ``waits`` knows where it waits for the device.
    """
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), capture_stream(device)
        side.wait_stream(current)
        try:
            with _waiting_forbidden() if must_not_wait else nullcontext(), torch.cuda.stream(side):
                return work()
        finally:
            current.wait_stream(side)


@contextmanager
def _waiting_forbidden() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # That this mode does not see everything; what it misses fails in the capture.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def waits(error: BaseException) -> bool:
    """Whether PyTorch raised an error because work waits for the device."""
    return isinstance(error, RuntimeError) and "synchronizing CUDA operation" in str(error)


def capture(
    work: Callable[[], _Result], device: torch.device, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """Capture one call of the work, which has been warmed up.

    Args:
        work: called without arguments.
        device: the GPU that it works on.
        pool: memory to share with other graphs, from ``torch.cuda.graph_pool_handle``.

    Returns:
        The graph, and what the call returned: memory that each replay fills anew.

    Raises:
        RuntimeError: the work cannot be captured. Later captures are not disturbed.
    """
    # A graph belongs to the device that is current when its object and its stream are made.
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        own = torch.cuda.graph_pool_handle() if pool is None else pool
        with _put_back_on_failure(own):
            # Other threads, which read the next batches, may pin memory and query events meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(graph, own, capture_stream(device), capture_error_mode=mode):
                result = work()
    return graph, result


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which this process warms up and captures."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return _stream(index)


@cache
def _stream(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(torch.device("cuda", index))


@contextmanager
def _put_back_on_failure(pool: Any) -> Iterator[None]:
    """Where a capture fails, undo what PyTorch leaves of it on the current device."""
    device, before = torch.cuda.current_device(), torch.cuda.current_stream()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(before)
        # It raises where the capture has ended as it should, and then there is nothing to undo.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)
            generator = torch.cuda.default_generators[device]
            generator.graphsafe_set_state(generator.clone_state())
        raise
