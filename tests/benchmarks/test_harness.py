"""The measuring tools of the benchmark suites."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import harness, results_file
from benchmarks.rows import Comparison, Timing


@pytest.fixture
def device(monkeypatch):
    """Restores the device that is measured."""
    monkeypatch.setattr(harness, "DEVICE", harness.DEVICE)
    return lambda name: monkeypatch.setattr(harness, "DEVICE", torch.device(name))


class Clock:
    """A clock that goes on only where a column says so, however busy the machine is."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def takes(self, seconds):
        self.now += seconds


def test_interleave_finds_the_slower_column(device, monkeypatch):
    device("cpu")
    clock, longer = Clock(monkeypatch), itertools.count()
    columns = {
        "fast": lambda: clock.takes(0.001),
        "slow": lambda: clock.takes(0.002 + 0.001 * next(longer)),
    }
    timings = harness.interleave(columns, rounds=5, warmup=0)
    assert timings["fast"].median == pytest.approx(0.001)
    assert timings["slow"].median == pytest.approx(0.004)
    assert timings["slow"].rounds == 5
    assert timings["slow"].fastest == pytest.approx(0.002)
    assert timings["slow"].how == "wall clock"


def test_interleave_alternates_columns(device):
    device("cpu")
    order: list[str] = []
    columns = {name: (lambda name=name: order.append(name)) for name in "abc"}
    harness.interleave(columns, rounds=2, warmup=0)
    assert "".join(order) == "abcbca"


def test_each_round_is_reported(device):
    device("cpu")
    done: list[int] = []
    harness.interleave({"a": lambda: None}, rounds=3, after_round=done.append)
    assert done == [1, 2, 3]


def test_a_call_of_several_works_is_divided():
    assert Timing(6.0, 4.0, 2.0, 9).divided(2) == Timing(3.0, 2.0, 1.0, 9)


def test_several_calls_are_timed_together(device, monkeypatch):
    device("cpu")
    clock, count = Clock(monkeypatch), []

    def call():
        count.append(1)
        clock.takes(0.5)

    timings = harness.interleave({"a": call}, rounds=3, calls=7, warmup=2)
    assert len(count) == 2 + 3 * 7
    assert timings["a"].median == pytest.approx(0.5)


def test_sizes_of_the_device(device):
    device("cpu")
    assert harness.sizes(cpu=[1], cuda=[2, 3]) == [1]
    device("cuda")
    assert harness.sizes(cpu=[1], cuda=[2, 3]) == [2, 3]
    assert harness.sizes(cpu=[1]) == [1]


def test_use_device(device, monkeypatch):
    harness.use_device("cpu")
    assert harness.DEVICE.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA device"):
        harness.use_device("cuda")
    assert harness.DEVICE.type == "cpu"


def test_results_are_written_and_read(tmp_path):
    timing = Timing(0.002, 0.001, 0.0001, 9)
    limits = {"ours": ("clone", 1.2)}
    rows = [
        Comparison("a", "1", "default", {"ours": timing}, 8, "clone", "ours", {}, 4, limits),
        Comparison("b", "2", "raised", {"clone": timing}, omitted={"missing": "no compiler"}),
    ]
    paths = results_file.write_results(rows, tmp_path / "new")
    assert [path.name.partition("-")[0] for path in paths] == ["a", "b"]
    environment, read = results_file.read_file(paths[0])
    assert read == rows[:1]
    assert environment["torch"] == torch.__version__ and environment["synq-fast"]
    results_file.write_file(rows, tmp_path / "all.json", threads=3)
    environment, read = results_file.read_file(tmp_path / "all.json")
    assert read == rows and environment["threads"] == 3


def test_files_of_earlier_versions_are_read(tmp_path):
    row = {"suite": "s", "case": "c", "allocator": "default"}
    row["timings"] = {"a": {"median": 1, "fastest": 1, "quartile_range": 0, "rounds": 2}}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"environment": {}, "rows": [row]}))
    (read,) = results_file.read_file(path)[1]
    assert read.timings["a"].how == "wall clock"


@pytest.mark.parametrize("content", [None, "[", "[]", '{"rows": [{"bits": 4}], "environment": {}}'])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "accuracy.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(results_file.ResultsError, match=r"accuracy\.json"):
        results_file.read_file(path)


def test_threads_are_restored():
    before = torch.get_num_threads()
    with harness.fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("setting", harness.allocator_settings())
def test_allocator_settings_apply_and_return(setting):
    with harness.allocator(setting):
        assert torch.ones(1 << 20).sum() == 1 << 20


def test_unknown_allocator_setting_is_refused():
    with pytest.raises(KeyError), harness.allocator("tiny"):
        pass
