import pytest
import torch

from synq_fast import replay
from synq_fast.errors import SynqFastError, SynqFastWarning
from synq_fast.replay import Replayed


class Failing:
    """In place of ``torch.cuda.graph``: a recording that fails in its work or at its end."""

    def __init__(self, *_, **__) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Silent(Failing):
    def __exit__(self, kind, error, trace) -> None:
        pass


def as_if_on_gpu(monkeypatch, ending, error) -> tuple[Replayed, list[int]]:
    """Work whose fourth call, the recording, fails."""
    calls = []

    def work(x):
        calls.append(len(calls))
        if len(calls) == 4:
            raise error
        return x + 1

    replayed = Replayed(work, torch.device("cpu"))
    replayed.record = True
    monkeypatch.setattr(replayed, "_on_side_stream", lambda inputs: work(*inputs))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", ending)
    monkeypatch.setattr(torch.cuda, "device", Silent)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return replayed, calls


def test_nothing_is_recorded_on_a_cpu():
    replayed = Replayed(lambda x: x + 1, torch.device("cpu"))
    assert not replayed.record
    assert [replayed(torch.tensor(n)).item() for n in range(6)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("ending", [Silent, Failing])
def test_recording_that_does_not_fit_is_done_without_and_said(monkeypatch, ending):
    lack = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    replayed, calls = as_if_on_gpu(monkeypatch, ending, lack)
    with pytest.warns(SynqFastWarning, match=r"2 GiB\.\): going on without a recording") as caught:
        results = [replayed(torch.tensor(n)).item() for n in range(6)]
    assert results == [1, 2, 3, 4, 5, 6]
    assert len(caught) == 1 and len(calls) == 7 and replay._WARM_UP == 3


def test_work_that_cannot_be_recorded_is_an_error(monkeypatch):
    replayed, _ = as_if_on_gpu(monkeypatch, Silent, RuntimeError("operation not permitted"))
    with pytest.raises(SynqFastError, match=r"not permitted.*cuda_graph = false"):
        for number in range(6):
            replayed(torch.tensor(number))
