"""In place of ``torch.cuda``: two devices whose captures go wrong as PyTorch's do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synq_fast.runtime import capture


class PretendedGpu:
    """Streams, pools and captures, without any work of their own.

    A capture during which the work waited raises where it ends, and leaves its stream current, its
    pool allocating and the generator capturing; from then on no capture can begin.
    """

    def __init__(self) -> None:
        self.index, self.mode, self.handles, self.released = 0, 0, 0, 0
        self.current: dict[int, Any] = {}
        self.streams: list[Any] = []
        self.pools: list[Any] = []
        self.graphs: list[Any] = []
        self.underway: set[Any] = set()
        self.capturing: Any = None
        self.default_generators = [Generator(), Generator()]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
        """Replace ``torch.cuda`` until the test ends."""
        monkeypatch.setattr(torch, "cuda", self)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocation)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        # Streams of its own, none of the real ones.
        monkeypatch.setattr(capture, "_stream", lru_cache(capture._stream.__wrapped__))
        return self

    def wait(self) -> None:
        """What ``.item()`` does."""
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capturing is not None:
            self.capturing.invalid = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.index = self.index, device.index or 0
        try:
            yield
        finally:
            self.index = before

    def current_device(self) -> int:
        return self.index

    def Stream(self, device: torch.device | None = None, priority: int = 0) -> Any:
        index = self.index if device is None else device.index or 0
        stream = SimpleNamespace(index=index, priority=priority, waits=[])
        stream.wait_stream = stream.waits.append
        self.streams.append(stream)
        return stream

    def current_stream(self, device: torch.device | None = None) -> Any:
        index = self.index if device is None else device.index or 0
        return self.current.setdefault(index, SimpleNamespace(index=index, wait_stream=id))

    def set_stream(self, stream: Any) -> None:
        self.current[stream.index] = stream

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = self.current_stream(torch.device("cuda", stream.index))
        self.set_stream(stream)
        try:
            yield
        finally:
            self.set_stream(before)

    def get_sync_debug_mode(self) -> Any:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.mode = mode

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        if self.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def graph_pool_handle(self) -> Any:
        self.handles += 1
        return (0, self.handles)

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(index=self.index, invalid=False, calls=[], replays=0)
        graph.replay = lambda: self.replay(graph)
        self.graphs.append(graph)
        return graph

    def replay(self, graph: Any) -> None:
        graph.replays += 1

    def graph(self, graph: Any, pool: Any, stream: Any, *, capture_error_mode: str) -> Any:
        assert capture_error_mode == "thread_local"
        return Capture(self, graph, pool, stream)

    def end_allocation(self, device: int, pool: Any) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device: int, pool: Any) -> None:
        self.released += 1


class Capture:
    """In place of ``torch.cuda.graph``."""

    def __init__(self, gpu: PretendedGpu, graph: Any, pool: Any, stream: Any) -> None:
        self.gpu, self.of, self.pool, self.stream = gpu, graph, pool, stream

    def __enter__(self) -> None:
        gpu = self.gpu
        gpu.empty_cache()
        assert gpu.index == self.of.index == self.stream.index, "captured on another device"
        self.before = gpu.current_stream()
        gpu.set_stream(self.stream)
        gpu.underway.add(self.pool)
        gpu.pools.append(self.pool)
        gpu.default_generators[gpu.index].state["capturing"] = True
        gpu.capturing = self.of

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        gpu, gpu.capturing = self.gpu, None
        if self.of.invalid:
            raise RuntimeError("CUDA error: operation failed due to a previous error")
        gpu.underway.remove(self.pool)
        gpu.default_generators[gpu.index].state["capturing"] = False
        gpu.set_stream(self.before)


class Generator:
    """A generator whose state says whether a capture has it."""

    def __init__(self) -> None:
        self.state = {"capturing": False}

    def clone_state(self) -> dict[str, bool]:
        return {"capturing": False}

    def graphsafe_set_state(self, state: dict[str, bool]) -> None:
        self.state = state
