"""Repeated work on a GPU as a CUDA graph: recorded once, then replayed without Python."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from synq_fast.errors import OutOfMemoryError, SynqFastError, SynqFastWarning
from synq_fast.runtime.capture import capture, capture_stream, waits, warm_up
from synq_fast.runtime.out_of_memory import is_out_of_memory, reason_of

WARM_UP = 3
"""Calls of the work before it is recorded."""


class Replayed:
    """Calls a function of tensors; on a GPU, after a few calls, from a recording of its kernels.

    The work may not wait for the device or draw random numbers, and keeps what it changes
    (parameters, optimizer state) at fixed addresses. Elsewhere than on a GPU it is a plain call.
    """

    def __init__(
        self,
        work: Callable[..., Tensor],
        device: torch.device,
        *,
        record: bool = True,
        pool: Any = None,
    ) -> None:
        """Prepare.

        Args:
            work: maps tensors on ``device`` to one tensor.
            device: where the work is done.
            record: on a GPU, record a graph; otherwise call the work each time.
            pool: memory that recordings share whose replays alternate, from
                ``torch.cuda.graph_pool_handle``.
        """
        self.work, self.device, self._pool = work, device, pool
        self.record = record and device.type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result of the work on inputs of always the same shapes, in memory of its own.

        Warns:
            SynqFastWarning: memory is too short for a recording; all calls are plain from then on.

        Raises:
            SynqFastError: the work cannot be recorded; says what to switch off.
        """
        if not self.record:
            return self.work(*inputs)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._warm_up(inputs)
        if self._graph is None and not self._record(inputs):
            return self.work(*inputs)
        assert self._graph is not None
        for buffer, x in zip(self._inputs, inputs, strict=True):
            buffer.copy_(x)
        self._graph.replay()
        assert self._result is not None
        return self._result.clone()

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Call the work as recording will; the last time it shows that it does not wait."""
        last = self._calls == WARM_UP
        try:
            result = warm_up(lambda: self.work(*inputs), self.device, must_not_wait=last)
        except RuntimeError as error:
            if not waits(error):
                raise
            raise _cannot_be_recorded(error) from error
        current, side = torch.cuda.current_stream(self.device), capture_stream(self.device)
        for tensor in (*inputs, result):
            tensor.record_stream(current)
            tensor.record_stream(side)
        return result

    def _record(self, inputs: tuple[Tensor, ...]) -> bool:
        """Record the work; where memory is too short for that, never try again and say so."""
        self._inputs = tuple(x.clone() for x in inputs)
        try:
            self._graph = self._recorded()
            return True
        except OutOfMemoryError as error:
            reason = str(error)
        # The error is gone here, and with it the frames that hold the attempt's tensors.
        self.record, self._inputs, self._result = False, (), None
        gc.collect()
        torch.cuda.empty_cache()
        warnings.warn(
            f"{reason}: going on without a recording, which is slower",
            SynqFastWarning,
            stacklevel=3,
        )
        return False

    def _recorded(self) -> torch.cuda.CUDAGraph:
        try:
            graph, self._result = capture(lambda: self.work(*self._inputs), self.device, self._pool)
        except RuntimeError as error:
            # Ending a recording that has failed may raise an error of its own.
            for cause in (error, error.__context__):
                if cause is not None and is_out_of_memory(cause):
                    text = f"recording a CUDA graph ran out of memory ({reason_of(cause)})"
                    raise OutOfMemoryError(text) from error
            raise _cannot_be_recorded(error) from error
        return graph


def _cannot_be_recorded(error: RuntimeError) -> SynqFastError:
    reason = str(error).splitlines()[0]
    return SynqFastError(
        f"the work cannot be recorded as a CUDA graph ({reason}). Some part of the model "
        f"may wait for the device, or memory may be short: set cuda_graph = false in this "
        f"section of the recipe"
    )
