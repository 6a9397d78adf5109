"""What a run says about its rows."""

from __future__ import annotations

from benchmarks import summary
from benchmarks.rows import Comparison, Timing


def row(medians: dict[str, float], **fields) -> Comparison:
    timings = {name: Timing(value, value, value / 10, 9) for name, value in medians.items()}
    ours = next((name for name in medians if name.startswith("ours")), None)
    return Comparison("suite", "case", "default", timings, ours=ours, **fields)


def test_table():
    columns = {"ours (cpu)": 0.002, "clone": 0.001}
    text = row(columns, bytes_moved=4_000_000, copy="clone", omitted={"aten": "gone"}).table()
    assert "2 ms" in text and "2.0" in text and "0.50x" in text and "aten" in text
    assert "gone" in text


def test_a_copy_is_credited_with_its_own_bytes():
    # A reduction reads 4 MB in the time that a copy takes to read and to write them.
    columns = {"ours (cpu)": 0.002, "aten": 0.004, "clone": 0.002}
    measured = row(columns, bytes_moved=4_000_000, copy="clone", copy_bytes=8_000_000)
    assert [measured.of_copy(name) for name in columns] == [0.5, 0.25, 1.0]
    assert measured.bandwidth("clone") == 4e9
    assert row(columns, bytes_moved=4_000_000, copy="clone").of_copy("ours (cpu)") == 1.0
    assert row(columns, bytes_moved=4_000_000).of_copy("aten") is None
    assert row(columns, copy="clone").of_copy("aten") is None


def test_table_tells_how_a_gpu_was_timed():
    same = Timing(1, 1, 0, 9, "CUDA graph of 4 calls, 4 inputs")
    text = Comparison("s", "c", "default", {"a": same, "b": same}).table()
    assert text.count("CUDA graph of 4 calls") == 1
    text = Comparison("s", "c", "default", {"a": same, "b": Timing(1, 1, 0, 9, "events")}).table()
    assert "a: timed as CUDA graph" in text and "b: timed as events" in text


def test_speed_ups_are_of_rivals_only():
    ours = {"ours (cuda)": 2.0, "ours (triton)": 3.0, "ours, public function": 4.0}
    measured = row({**ours, "clone": 1.0, "eager": 8.0})
    assert measured.our_columns() == list(ours)
    assert measured.speed_ups() == {"clone": 0.5, "eager": 4.0}
    assert row({"clone": 1.0}).speed_ups() == {}


def test_losses_to_the_compiler_are_listed_from_a_size_on():
    slow = {"ours (cpu)": 2.0, "reference, torch.compile": 1.0}
    assert summary.losses([row(slow, elements=65_536)]) == [
        "suite: case: 0.50x reference, torch.compile"
    ]
    assert summary.losses([row(slow, elements=65_535)]) == []
    # Without the number of elements that of the bytes counts, as if nothing were written.
    assert summary.losses([row(slow, bytes_moved=4 * 65_536)])
    assert not summary.losses([row(slow, bytes_moved=4 * 65_535)])
    assert summary.losses([row(slow)])
    assert summary.losses([row({"ours (cpu)": 1.0, "reference, torch.compile": 1.0})]) == []


def test_summary_names_every_rival_and_each_loss():
    text = summary.summary([row({"ours (cpu)": 1.0, "a": 2.0, "b, torch.compile": 0.5})])
    assert "2.00x a" in text and "0.50x b, torch.compile" in text
    assert "torch.compile at 65,536 elements and more:\n  suite: case: 0.50x" in text
    text = summary.summary([row({"ours (cpu)": 1.0, "b, torch.compile": 2.0})])
    assert text.endswith("and more: none")


def test_summary_names_calls_over_their_limit():
    limits = {"ours (cpu)": ("aten", 1.2), "public": ("aten", 2.0)}
    measured = row({"ours (cpu)": 1.3, "public": 1.9, "aten": 1.0}, limits=limits)
    text = summary.summary([measured])
    assert "ours (cpu) takes 1.30x aten, 1.2x allowed" in text
    assert "public takes" not in text
    absent = row({"ours (cpu)": 1.3}, limits=limits)
    assert absent.over_limit() == []


def test_summary_names_what_was_not_there():
    text = summary.summary([row({"clone": 1.0}, omitted={"ours (cuda)": "no nvcc"})])
    assert "not measured:\n  suite: case: ours (cuda): no nvcc" in text
