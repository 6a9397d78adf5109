"""The next steps' batches, read while the current step trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Prefetcher:
    """Calls ``read`` for the next steps in one background thread.

    Reading depends only on the step's number, so what is read ahead is what would be read later. An
    error is raised where its step is asked for. The thread ends with ``close``, or when the
    prefetcher is no longer referenced.
    """

    def __init__(self, read: Callable[[int], Tensors], device: torch.device, depth: int = 2):
        """Prepare to read ``depth`` steps ahead; to a GPU on a stream of its own."""
        self._read, self._depth = read, depth
        # PyTorch hands its streams out in turns; those of this priority are never captured.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="synq-fast-batches")
        self._ahead: dict[int, Future[tuple[Tensors, torch.cuda.Event | None]]] = {}

    def __call__(self, step: int) -> Tensors:
        """What ``read`` gives for a step, ready for the current stream."""
        wanted = range(step, step + self._depth + 1)
        for passed in self._ahead.keys() - set(wanted):
            self._ahead.pop(passed).cancel()
        self._submit(step)
        tensors, copied = self._ahead.pop(step).result()
        # Only now: two threads that become busy at once would wait for each other.
        for soon in wanted[1:]:
            self._submit(soon)
        if copied is not None:
            stream = torch.cuda.current_stream(tensors[0].device)
            stream.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(stream)
        return tensors

    def _submit(self, step: int) -> None:
        if step not in self._ahead:
            self._ahead[step] = self._thread.submit(self._on_own_stream, step)

    def _on_own_stream(self, step: int) -> tuple[Tensors, torch.cuda.Event | None]:
        if self._stream is None:
            return self._read(step), None
        with torch.cuda.stream(self._stream):
            return self._read(step), self._stream.record_event()

    def close(self) -> None:
        """End the thread, after the read that it is at."""
        self._thread.shutdown(wait=True, cancel_futures=True)
