"""The timing of a GPU's work, with a pretended GPU that counts instead of computing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import columns, cuda_timing, harness
from tests.pretended_gpu import PretendedGpu


class TimedGpu(PretendedGpu):
    """Calls take the time they say; a graph repeats what it captured."""

    def __init__(self, cache: int = 1000) -> None:
        super().__init__()
        self.clock, self.cache = 0.0, cache

    def work(self, name: object, milliseconds: float) -> None:
        if self.capturing is None:
            self.clock += milliseconds
        else:
            self.capturing.calls.append((name, milliseconds))

    def replay(self, graph):
        super().replay(graph)
        for call in graph.calls:
            self.work(*call)

    def get_device_properties(self, _):
        return SimpleNamespace(L2_cache_size=self.cache)

    def Event(self, enable_timing):
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.clock)
        event.elapsed_time = lambda other: other.at - event.at
        return event


@pytest.fixture
def gpu(monkeypatch):
    gpu = TimedGpu().install(monkeypatch)
    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    return gpu


def test_a_graph_repeats_short_work_on_all_inputs(gpu):
    rotation = cuda_timing.Rotation([lambda i=i: gpu.work(i, 0.11) for i in range(3)])
    timings = harness.interleave({"a": rotation}, rounds=3)
    assert timings["a"].how == "CUDA graph of 9 calls, 3 inputs"
    assert timings["a"].median == pytest.approx(0.11e-3)
    assert [name for name, _ in gpu.graphs[0].calls] == [0, 1, 2] * 3


def test_long_work_is_captured_once(gpu):
    timings = harness.interleave({"a": lambda: gpu.work("a", 50.0)}, rounds=3)
    assert timings["a"].how == "CUDA graph of 1 calls, 1 input"
    assert timings["a"].median == pytest.approx(0.05)


def test_a_row_rotates_only_where_all_columns_do(gpu):
    rotation = cuda_timing.Rotation([lambda i=i: gpu.work(i, 50.0) for i in range(4)])
    timings = harness.interleave({"a": rotation, "b": lambda: gpu.work("b", 1.0)}, rounds=3)
    assert "1 input" in timings["a"].how and "1 input" in timings["b"].how
    assert {name for graph in gpu.graphs for name, _ in graph.calls} == {0, "b"}


def test_what_waits_is_timed_with_events_and_says_so(gpu):
    def waits():
        gpu.work("waits", 2.0)
        gpu.wait()

    timings = harness.interleave({"waits": waits, "after": lambda: gpu.work("a", 50.0)}, rounds=3)
    assert timings["waits"].median == pytest.approx(2e-3)
    assert timings["waits"].how == (
        "events around one call, 1 input; not captured: called a synchronizing CUDA operation"
    )
    assert timings["after"].how == "CUDA graph of 1 calls, 1 input"


def test_a_capture_that_fails_does_not_disturb_the_columns_after_it(gpu):
    def fails():
        gpu.work("fails", 2.0)
        if gpu.capturing is not None:
            gpu.wait()

    timings = harness.interleave({"fails": fails, "after": lambda: gpu.work("a", 50.0)}, rounds=3)
    assert timings["fails"].median == pytest.approx(2e-3)
    assert timings["fails"].how.startswith("events around one call, 1 input; not captured: ")
    assert timings["after"].how == "CUDA graph of 1 calls, 1 input"


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
