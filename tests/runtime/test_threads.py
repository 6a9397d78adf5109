import os

import pytest
import torch

from synq_fast.runtime import threads


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("6400000 100000", 8), ("", 8)],
)
def test_quota_of_the_container_counts(tmp_path, monkeypatch, text, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    path = tmp_path / "cpu.max"
    assert threads.usable_cores(path) == 8
    path.write_text(text)
    assert threads.usable_cores(path) == cores


def test_threads_are_only_lowered_and_the_variable_decides(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        for usable, given, wanted in ((1, 2, 1), (8, 2, 2)):
            monkeypatch.setattr(threads, "usable_cores", lambda usable=usable: usable)
            torch.set_num_threads(given)
            threads.limit_threads()
            assert torch.get_num_threads() == wanted
        monkeypatch.setattr(threads, "usable_cores", lambda: 1)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        threads.limit_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
