"""Captures on a pretended GPU: on the right device, and without a trace where they fail."""

from __future__ import annotations

import pytest
import torch

from synq_fast.bank.prefetch import Prefetcher
from synq_fast.distributed import ALONE, joined
from synq_fast.runtime.capture import capture, capture_stream, waits, warm_up
from tests.pretended_gpu import PretendedGpu

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch) -> PretendedGpu:
    return PretendedGpu().install(monkeypatch)


@pytest.mark.parametrize("device", [FIRST, SECOND], ids=str)
def test_everything_happens_on_the_device_of_the_work(gpu, device):
    seen = []

    def work() -> str:
        stream = gpu.current_stream()
        seen.append((gpu.index, stream is capture_stream(device)))
        return "result"

    assert warm_up(work, device) == "result"
    graph, result = capture(work, device)
    assert result == "result" and graph.index == device.index
    assert seen == [(device.index, True)] * 2
    assert gpu.index == 0 and gpu.current_stream() is not capture_stream(FIRST)
    assert {stream.index for stream in gpu.streams if stream.waits} == {device.index}


def test_the_device_without_a_number_is_the_current_one(gpu):
    with gpu.device(SECOND):
        assert capture_stream(torch.device("cuda")) is capture_stream(SECOND)
    assert capture_stream(torch.device("cuda")) is capture_stream(FIRST)


def test_one_stream_serves_all_captures_of_a_device(gpu):
    for device in (FIRST, SECOND, FIRST, SECOND):
        warm_up(int, device)
        capture(int, device)
    assert len(gpu.streams) == 2


def test_captures_have_a_pool_of_their_own_or_the_one_that_is_shared(gpu):
    capture(int, FIRST)
    capture(int, FIRST)
    capture(int, FIRST, "shared")
    assert len(set(gpu.pools)) == 3 and gpu.pools[-1] == "shared"


@pytest.mark.parametrize("device", [FIRST, SECOND], ids=str)
@pytest.mark.parametrize("pool", [None, "shared"])
def test_a_capture_that_fails_leaves_nothing_behind(gpu, device, pool):
    generator = gpu.default_generators[device.index]
    with gpu.device(device):
        before = gpu.current_stream()
    with pytest.raises(RuntimeError, match="previous error"):
        capture(gpu.wait, device, pool)
    assert gpu.underway == set() and gpu.released == 1 and gpu.index == 0
    assert not generator.state["capturing"]
    with gpu.device(device):
        assert gpu.current_stream() is before
    # The next one, and whatever empties the cache, works as ever.
    gpu.empty_cache()
    graph, _ = capture(int, device, pool)
    assert not graph.invalid


def test_work_that_fails_in_a_healthy_capture_has_nothing_to_undo(gpu):
    with pytest.raises(ZeroDivisionError):
        capture(lambda: 1 / 0, FIRST)
    assert gpu.underway == set() and gpu.released == 0
    capture(int, FIRST)


def test_without_the_remedy_the_next_capture_fails(gpu):
    # As PyTorch's own context manager leaves it; shows that the pretended GPU can tell.
    graph = gpu.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match="previous error"),
        gpu.graph(graph, "own", capture_stream(FIRST), capture_error_mode="thread_local"),
    ):
        gpu.wait()
    with pytest.raises(RuntimeError, match="captures_underway"):
        capture(int, FIRST)


def test_work_that_waits_is_found_before_it_is_captured(gpu):
    warm_up(gpu.wait, FIRST)
    for mode in (0, "warn"):
        gpu.mode = mode
        with pytest.raises(RuntimeError) as caught:
            warm_up(gpu.wait, FIRST, must_not_wait=True)
        assert waits(caught.value) and gpu.mode == mode
    assert not waits(RuntimeError("CUDA error")) and not waits(ValueError("synchronizing"))


def test_the_message_that_is_recognised_is_pytorchs():
    """Its text, as it stands in PyTorch's library."""
    library = torch.__path__[0] + "/lib/libc10_cuda.so"
    try:
        with open(library, "rb") as file:
            content = file.read()
    except OSError:
        pytest.skip("this PyTorch has no CUDA")
    assert b"called a synchronizing CUDA operation" in content


def test_a_run_makes_its_gpu_the_current_one(gpu):
    with joined(SECOND) as ranks:
        assert ranks is ALONE and gpu.index == 1
    assert gpu.index == 0


def test_batches_are_copied_on_a_stream_that_is_never_captured(gpu):
    # PyTorch gives the same stream again after 32 of one priority.
    prefetcher = Prefetcher(lambda step: (), SECOND)
    prefetcher.close()
    capture_stream(SECOND)
    copies, captures = gpu.streams
    assert copies.index == captures.index == 1
    assert (copies.priority, captures.priority) == (-1, 0)
