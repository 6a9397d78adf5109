"""The timing of a GPU's work, with a pretended GPU that counts instead of computing."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks import columns, cuda_timing, harness


class PretendedGpu:
    """Stands for `torch.cuda`: calls take the time they say; a graph repeats what it captured."""

    def __init__(self, cache: int = 1000) -> None:
        self.clock, self.cache, self.capturing, self.fails = 0.0, cache, None, False
        self.graphs: list[list[object]] = []
        self.streams_set = 0

    def work(self, name: object, milliseconds: float) -> None:
        if self.capturing is None:
            self.clock += milliseconds
        else:
            self.capturing.append((name, milliseconds))

    def current_device(self):
        return 0

    def get_device_properties(self, _):
        return SimpleNamespace(L2_cache_size=self.cache)

    def synchronize(self):
        pass

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, _):
        return contextlib.nullcontext()

    def set_stream(self, stream):
        self.streams_set += 1

    def CUDAGraph(self):
        graph = SimpleNamespace(calls=[])
        graph.replay = lambda: [self.work(*call) for call in graph.calls]
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = graph.calls
        self.graphs.append(graph.calls)
        try:
            yield
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            self.capturing = None

    def Event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.clock)
        event.elapsed_time = lambda other: other.at - event.at
        return event


@pytest.fixture
def gpu(monkeypatch):
    gpu = PretendedGpu()
    monkeypatch.setattr(cuda_timing.torch, "cuda", gpu)
    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    return gpu


def test_a_graph_repeats_short_work_on_all_inputs(gpu):
    rotation = cuda_timing.Rotation([lambda i=i: gpu.work(i, 0.11) for i in range(3)])
    timings = harness.interleave({"a": rotation}, rounds=3)
    assert timings["a"].how == "CUDA graph of 9 calls, 3 inputs"
    assert timings["a"].median == pytest.approx(0.11e-3)
    assert [name for name, _ in gpu.graphs[0]] == [0, 1, 2] * 3


def test_long_work_is_captured_once(gpu):
    timings = harness.interleave({"a": lambda: gpu.work("a", 50.0)}, rounds=3)
    assert timings["a"].how == "CUDA graph of 1 calls, 1 input"
    assert timings["a"].median == pytest.approx(0.05)


def test_a_row_rotates_only_where_all_columns_do(gpu):
    rotation = cuda_timing.Rotation([lambda i=i: gpu.work(i, 50.0) for i in range(4)])
    timings = harness.interleave({"a": rotation, "b": lambda: gpu.work("b", 1.0)}, rounds=3)
    assert "1 input" in timings["a"].how and "1 input" in timings["b"].how
    assert {name for graph in gpu.graphs for name, _ in graph} == {0, "b"}


def test_what_cannot_be_captured_is_timed_with_events_and_says_so(gpu):
    gpu.fails = True
    timings = harness.interleave({"a": lambda: gpu.work("a", 2.0)}, rounds=3)
    assert timings["a"].median == pytest.approx(2e-3)
    assert gpu.streams_set == 1
    assert timings["a"].how == (
        "events around one call, 1 input; "
        "not captured: operation not permitted when stream is capturing"
    )


def test_the_wall_clock_on_request(gpu):
    timings = harness.interleave({"a": lambda: gpu.work("a", 2.0)}, rounds=3, clock="wall")
    assert timings["a"].how == "wall clock" and gpu.graphs == []


def test_copies_fill_the_cache():
    assert cuda_timing.copies(100, 1000) == 30
    assert cuda_timing.copies(3000, 1000) == 1
    assert cuda_timing.copies(1, 1000) == cuda_timing.MOST_COPIES
    assert cuda_timing.copies(0, 1000) == 1


def test_small_inputs_are_copied(gpu):
    seen = []
    x = torch.ones(50, requires_grad=True)
    scale = torch.ones(50)
    column = columns.call(lambda *a, **o: seen.append((*a, *o.values())), x, 4, scale=scale)
    assert len(column.calls) == cuda_timing.copies(400, gpu.cache)
    for _ in column.calls:
        column()
    assert seen[0][0] is x and seen[0][2] is scale
    pointers = {tensors[0].data_ptr() for tensors in seen}
    assert len(pointers) == len(seen)
    assert all(a.requires_grad and n == 4 and not b.requires_grad for a, n, b in seen)


def test_large_inputs_are_not_copied(gpu):
    column = columns.call(torch.clone, torch.ones(10_000))
    assert not isinstance(column, cuda_timing.Rotation)
    assert torch.equal(column(), torch.ones(10_000))


@pytest.mark.cuda
def test_on_a_gpu():
    x = torch.ones(1 << 20, device="cuda")
    columns_ = {
        "copy": columns.call(torch.clone, x),
        "twice": columns.call(lambda x: x.clone().clone(), x),
        "waits": columns.call(lambda x: x.sum().item(), x),
    }
    timings = harness.interleave(columns_, rounds=5)
    assert timings["copy"].how.startswith("CUDA graph")
    assert timings["waits"].how.startswith("events")
    assert timings["copy"].median < timings["twice"].median
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
