import pytest
import torch

from synq_fast.errors import SynqFastError, SynqFastWarning
from synq_fast.runtime.replay import WARM_UP, Replayed
from tests.pretended_gpu import PretendedGpu

CUDA = torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch) -> PretendedGpu:
    return PretendedGpu().install(monkeypatch)


def failing_at_the_recording(gpu, error, *, invalid=False):
    """Work whose fourth call, the recording, fails, and perhaps its end as well."""
    calls = []

    def work(x):
        calls.append(len(calls))
        if len(calls) == WARM_UP + 1:
            gpu.capturing.invalid = invalid
            raise error
        return x + 1

    return Replayed(work, CUDA), calls


def test_nothing_is_recorded_on_a_cpu():
    replayed = Replayed(lambda x: x + 1, torch.device("cpu"))
    assert not replayed.record
    assert [replayed(torch.tensor(n)).item() for n in range(6)] == [1, 2, 3, 4, 5, 6]


def test_work_is_recorded_on_its_own_device(gpu):
    seen = []

    def work(x):
        seen.append((gpu.index, gpu.mode))
        return x + 1

    replayed = Replayed(work, CUDA)
    for number in range(6):
        replayed(torch.tensor(number))
    # Two plain calls, one that may not wait, the recording; then only replays.
    assert seen == [(1, 0), (1, 0), (1, "error"), (1, 0)]
    assert [(graph.index, graph.replays) for graph in gpu.graphs] == [(1, 3)]


@pytest.mark.parametrize("invalid", [False, True])
def test_recording_that_does_not_fit_is_done_without_and_said(gpu, invalid):
    lack = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    replayed, calls = failing_at_the_recording(gpu, lack, invalid=invalid)
    with pytest.warns(SynqFastWarning, match=r"2 GiB\.\): going on without a recording") as caught:
        results = [replayed(torch.tensor(n)).item() for n in range(6)]
    assert results == [1, 2, 3, 4, 5, 6]
    assert len(caught) == 1 and len(calls) == 7


@pytest.mark.parametrize("invalid", [False, True])
def test_work_that_cannot_be_recorded_is_an_error(gpu, invalid):
    reason = RuntimeError("operation not permitted")
    replayed, _ = failing_at_the_recording(gpu, reason, invalid=invalid)
    with pytest.raises(SynqFastError, match=r"cannot be recorded.*cuda_graph = false"):
        for number in range(6):
            replayed(torch.tensor(number))
    # Other work can be recorded in this process all the same.
    other = Replayed(lambda x: x + 1, CUDA)
    for number in range(6):
        other(torch.tensor(number))
    assert gpu.graphs[-1].replays == 3


def test_work_that_waits_for_the_device_never_gets_as_far_as_a_capture(gpu):
    def work(x):
        gpu.wait()
        return x

    replayed, calls = Replayed(work, CUDA), 0
    with pytest.raises(SynqFastError, match=r"synchronizing.*cuda_graph = false"):
        for _ in range(6):
            replayed(torch.tensor(0))
            calls += 1
    assert calls == WARM_UP - 1 and gpu.graphs == []


def test_other_errors_of_the_work_are_its_own(gpu):
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        Replayed(lambda x: (_ for _ in ()).throw(RuntimeError("shapes differ")), CUDA)(
            torch.ones(1)
        )
