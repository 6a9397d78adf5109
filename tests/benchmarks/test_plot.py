"""The chart of the bandwidths."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="the chart needs matplotlib")

from matplotlib import image

from benchmarks import plot, results_file
from benchmarks.results_file import ResultsError
from benchmarks.rows import Comparison, Timing


def row(suite: str, case: str, allocator: str = "default", **medians: float) -> Comparison:
    names = {"ours": "ours (cpu)", "compiled": "reference, torch.compile", "copy": "clone"}
    timings = {names[k]: Timing(v, v, 0, 9) for k, v in medians.items()}
    return Comparison(suite, case, allocator, timings, 8, "clone", "ours (cpu)", elements=1 << 20)


ROWS = [
    row("a", "first", ours=2.0, compiled=4.0, copy=1.0),
    row("b", "other", ours=1.0, copy=1.0),
    row("a", "second", ours=1.0, copy=2.0),
]


def test_columns_belong_to_series():
    named = {
        "ours (cuda)": "synq-fast, CUDA C++",
        "reference, torch.compile": "torch.compile",
        "reference, eager": "PyTorch eager",
        "aten aminmax": "nearest ATen op",
        "clone": None,
    }
    for column, label in named.items():
        series = plot.series_of(column)
        assert (series.label if series else None) == label


def test_rows_stand_by_suite_under_one_allocator():
    raised = row("a", "first", "raised", ours=1.0, copy=1.0)
    found = plot.drawn([*ROWS, raised])
    assert [r.case for r in found] == ["first", "second", "other"]
    assert found[0] is raised and found[2] is ROWS[1]


def test_small_rows_are_left_out():
    small = replace(ROWS[0], elements=4096)
    assert plot.drawn([small, ROWS[1]]) == [ROWS[1]]


def test_png_grows_with_the_rows(tmp_path):
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    results_file.write_file(ROWS[:1], tmp_path / "few.json")
    rows = [row("c", str(place), ours=1.0, copy=1.0) for place in range(12)]
    results_file.write_file(rows, tmp_path / "many.json")
    plot.draw_files([tmp_path / "few.json"], few)
    plot.draw_files([tmp_path / "few.json", tmp_path / "many.json"], many)
    small, large = image.imread(few), image.imread(many)
    assert small.shape[1] == large.shape[1] > 1000
    assert large.shape[0] > small.shape[0] + 200
    # Not a blank page, and our blue is on it.
    assert small.std() > 0.05
    blue = abs(small[..., :3] - [0, 0x72 / 255, 0xB2 / 255]).max(axis=-1) < 0.02
    assert blue.sum() > 50


def test_a_fraction_beyond_the_axis_does_not_squeeze_the_others(tmp_path):
    plot.draw([*ROWS, row("a", "cached", ours=0.01, copy=1.0)], tmp_path / "wide.png")
    plot.draw([*ROWS, row("a", "cached", ours=0.6, copy=1.0)], tmp_path / "narrow.png")
    wide, narrow = (image.imread(tmp_path / f"{name}.png") for name in ("wide", "narrow"))
    assert wide.shape == narrow.shape


def test_nothing_to_draw_is_an_error(tmp_path):
    no_copy = Comparison("a", "b", "default", {"ours (cpu)": Timing(1, 1, 0, 9)})
    with pytest.raises(ResultsError, match="no large row has a copy"):
        plot.draw([no_copy], tmp_path / "x.png")


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    results, other, target = (tmp_path / n for n in ("rows.json", "accuracy.json", "x.png"))
    results_file.write_file(ROWS, results)
    other.write_text("{}")
    monkeypatch.setattr("sys.argv", ["plot", str(results), str(other), str(target)])
    assert plot.main() == 0
    assert target.exists() and "left out" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["plot", str(other), str(target)])
    assert plot.main() == 1
