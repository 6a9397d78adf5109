"""Repeated work on a GPU as a CUDA graph: recorded once, then replayed without Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from synq_fast.errors import SynqFastError

_WARM_UP = 3


class Replayed:
    """Calls a function of tensors; on a GPU from a recording of its kernels.

    Inputs come from the host and are copied to fixed buffers without waiting; the work may draw
    no random numbers, must not wait for the device, and keeps what it changes (parameters,
    optimizer state) at fixed addresses. Elsewhere than on a GPU it is a plain call.
    """

    def __init__(
        self, work: Callable[..., Tensor], device: torch.device, *, record: bool = True
    ) -> None:
        """Prepare.

        Args:
            work: maps inputs on ``device`` to one tensor.
            device: where the work is done.
            record: on a GPU, record a graph; otherwise call the work each time.
        """
        self.work, self.device = work, device
        self.record = record and device.type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result of the work for inputs on the host, a tensor of its own.

        Raises:
            SynqFastError: the work cannot be recorded; says what to switch off.
        """
        if self.device.type != "cuda":
            return self.work(*inputs)
        # A pinned block is not used again before its copy is done: the allocator sees to that.
        inputs = tuple(x.pin_memory() for x in inputs)
        if not self.record:
            return self.work(*(x.to(self.device, non_blocking=True) for x in inputs))
        if not self._inputs:
            self._inputs = tuple(torch.empty_like(x, device=self.device) for x in inputs)
        for buffer, x in zip(self._inputs, inputs, strict=True):
            buffer.copy_(x, non_blocking=True)
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._on_side_stream()
        if self._graph is None:
            self._record()
        assert self._graph is not None and self._result is not None
        self._graph.replay()
        return self._result.clone()

    def _on_side_stream(self) -> Tensor:
        """Call the work as recording will: lazy initialisations must happen before it."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self.work(*self._inputs)
        current.wait_stream(side)
        result.record_stream(current)
        return result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._result = self.work(*self._inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SynqFastError(
                f"the work cannot be recorded as a CUDA graph ({reason}): some part of the model "
                f"waits for the device; run with cuda_graph = false in this section of the recipe"
            ) from error
        self._graph = graph
