"""Tables that are no rows of columns."""

from __future__ import annotations

import json

import pytest

from benchmarks import results_file
from benchmarks.rows import Comparison, Timing
from benchmarks.tables import Table, targets_table


def test_a_tables_text_and_file(tmp_path):
    table = Table(
        "step", "title", ("part", "ms", "%"), [("all", 12.3456, 100.0), ("x", None, "no")]
    )
    lines = table.text().splitlines()
    assert lines[0] == "step: title"
    assert lines[2].split() == ["all", "12.3", "100"] and lines[3].split() == ["x", "-", "no"]
    assert len({len(line) for line in lines[1:]}) == 1
    row = Comparison("synthesis", "c", "default", {"a": Timing(1, 1, 0, 2)})
    paths = results_file.write_results([row], tmp_path, tables=[table])
    assert [path.name for path in paths] == ["synthesis-cpu.json", "step-cpu.json"]
    assert "tables" not in json.loads(paths[0].read_text())
    assert json.loads(paths[1].read_text())["tables"][0]["rows"] == [
        ["all", 12.3456, 100.0],
        ["x", None, "no"],
    ]
    assert results_file.read_file(paths[1])[1] == []
    with pytest.raises(ValueError, match="3 columns"):
        Table("step", "t", ("a", "b", "c"), [("x", 1.0)])


def test_targets_say_whether_they_hold():
    timings = {name: Timing(t, t, 0, 3) for name, t in {"ours": 1.0, "a": 3.0, "b": 1.2}.items()}
    row = Comparison("step", "c", "raised", timings, ours="ours")
    table = targets_table(row, {"a": 3.2, "b": 1.1})
    assert [line[0] for line in table.rows] == ["a", "b"]
    assert [line[-1] for line in table.rows] == ["missed", "holds"]
