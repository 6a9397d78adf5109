"""The measuring tools of the benchmark suites."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import harness


def test_interleave_finds_the_slower_column():
    timings = harness.interleave(
        {"fast": lambda: None, "slow": lambda: time.sleep(0.002)}, rounds=5
    )
    assert timings["slow"].median > 0.002 > timings["fast"].median
    assert timings["slow"].rounds == 5
    assert timings["slow"].fastest <= timings["slow"].median


def test_interleave_alternates_columns():
    order: list[str] = []
    columns = {name: (lambda name=name: order.append(name)) for name in "abc"}
    harness.interleave(columns, rounds=2, warmup=0)
    assert "".join(order) == "abcbca"


def test_comparison_table_and_result_file(tmp_path):
    timing = harness.Timing(0.002, 0.001, 0.0001, 9)
    copy = harness.Timing(0.001, 0.001, 0.0001, 9)
    row = harness.Comparison(
        "suite",
        "case",
        "default",
        {"ours": timing, "clone": copy},
        4_000_000,
        "clone",
        "ours",
        {"missing": "no compiler"},
    )
    text = row.table()
    assert "2 ms" in text and "2.0" in text and "0.50x" in text and "no compiler" in text
    (path,) = harness.write_results([row], tmp_path)
    stored = json.loads(path.read_text())
    assert stored["rows"][0]["timings"]["ours"]["median"] == 0.002
    assert stored["environment"]["torch"] == torch.__version__


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
