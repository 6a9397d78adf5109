"""The check of a GPU machine: its targets, every op, and the script itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import every_op, results_file, targets
from benchmarks.rows import Comparison, Timing
from synq_fast import info, ops, reference

ROOT = Path(__file__).parents[2]
OPS = [op for op in every_op.CASES if hasattr(ops, op)]


def row(suite: str, case: str, share: float, nbytes: int = 1 << 27, **rivals: float) -> Comparison:
    medians = {"ours (cuda)": 1.0, "clone": share, **rivals}
    timings = {name: Timing(v, v, 0, 9) for name, v in medians.items()}
    return Comparison(suite, case, "default", timings, nbytes, "clone", "ours (cuda)")


def verdict(**fields) -> dict:
    good = {"op": "a", "backend": "cuda", "exact": True, "wrong": "", "not_captured": ""}
    return {**good, **fields}


def judged(rows=(), verdicts=()) -> dict[str, targets.Target]:
    return {t.name.split(":")[0]: t for t in targets.targets(list(rows), list(verdicts))}


def test_bandwidth_counts_from_64_mebibytes_on():
    rows = [row("a", "large", 0.84), row("b", "large", 0.86), row("c", "small", 0.1, 1 << 25)]
    rows.append(row("search_range", "large", 0.1))
    target = judged(rows)["85% of the copy bandwidth from 64 MiB on"]
    assert target.checked == 2 and target.missed == ["a: large: ours (cuda) 0.84"]
    assert target.text.startswith("missed") and "(1 of 2)" in target.text


def test_low_pass_has_a_target_of_its_own():
    name = "low_pass 256x3x224x224"
    cases = ["gaussian 256x3x224x224", "gaussian 256x3x32x32", "16x3x224x224"]
    assert judged([row("low_pass", c, 0.5) for c in cases])[name].checked == 1
    assert judged([row("low_pass", cases[0], 0.61)])[name].missed == []
    assert judged([row("low_pass", cases[0], 0.59)])[name].missed


def test_torch_compile_must_not_be_faster():
    compiled = "reference, torch.compile"
    rows = [row("a", "x", 1, **{compiled: 0.9}), row("b", "x", 1, **{compiled: 1.1})]
    target = judged([*rows, row("c", "x", 1)])["nothing slower than torch.compile"]
    assert target.checked == 2 and target.missed == ["a: x: 0.90x"]


def test_verdicts_decide_bits_and_capture():
    verdicts = [verdict(), verdict(op="b", wrong="off by one"), verdict(op="c", exact=False)]
    verdicts.append(verdict(op="d", exact=False, not_captured="synchronises"))
    found = judged((), verdicts)
    assert found["same bits on every backend"].missed == ["b (cuda): off by one"]
    assert found["same bits on every backend"].checked == 2
    assert found["every op is captured in a CUDA graph"].missed == ["d (cuda): synchronises"]
    assert found["every op equals the reference"].checked == 4


def test_files_of_both_kinds_are_read(tmp_path, capsys):
    rows, verdicts, other = (tmp_path / n for n in ("a.json", "b.json", "c.json"))
    results_file.write_file([row("a", "large", 0.9)], rows)
    verdicts.write_text(json.dumps({"verdicts": [verdict()]}))
    other.write_text("{}")
    assert targets.main([str(rows), str(verdicts), str(other)]) == 1
    captured = capsys.readouterr()
    assert "holds         85% of the copy bandwidth" in captured.out
    assert "not measured  low_pass" in captured.out
    assert "c.json" in captured.err


@pytest.mark.parametrize("op", OPS)
def test_every_op_equals_the_reference(op):
    # On the reference this shows that a case of the table can run.
    for backend in every_op.backends(op, "cpu") or ["reference"]:
        assert every_op.check(op, backend, "cpu") == every_op.Verdict(
            op, backend, every_op.CASES[op].exact
        )


@pytest.mark.parametrize("op", ["fake_quantize", "low_pass"])
def test_a_wrong_value_or_gradient_is_found(op, monkeypatch):
    right = getattr(reference, op)
    with monkeypatch.context() as patch:
        patch.setattr(ops, op, lambda *a, **o: right(*a, **o) * (1 + 1e-2))
        assert "difference" in every_op.check(op, "reference", "cpu").wrong
    with monkeypatch.context() as patch:
        # The same values, with the gradient of two of them.
        patch.setattr(ops, op, lambda x, *a, **o: 2 * (y := right(x, *a, **o)) - y.detach())
        assert "difference" in every_op.check(op, "reference", "cpu").wrong


def test_an_op_that_fails_is_named(monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(ops, "low_pass", broken)
    assert every_op.check("low_pass", "reference", "cpu").wrong == "ZeroDivisionError: by zero"


def test_every_public_op_and_kernel_is_covered():
    assert set(reference.__all__) <= every_op.COVERED
    assert set(info.report().kernels) <= every_op.COVERED


def test_every_op_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "verdicts.json"
    code = every_op.main(["--op", "fake_quantize", "--json", str(path)])
    assert code == 0 and "fake_quantize" in capsys.readouterr().out
    stored = json.loads(path.read_text())["verdicts"]
    assert all(v["op"] == "fake_quantize" and not v["wrong"] for v in stored)


def gpu_check(python: Path | str, results: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python), "RESULTS": str(results), "PATH": path}
    script = ROOT / "benchmarks" / "gpu_check.sh"
    return subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the whole check")
def test_without_a_gpu_each_step_is_skipped_by_name(tmp_path):
    done = gpu_check(sys.executable, tmp_path, os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    assert done.stdout.count("\n") == len(skipped)
    for step in (
        "build with CUDA",
        "GPU tests",
        "every op",
        "compute-sanitizer",
        "whole steps",
        "targets",
    ):
        assert any(step in line and "no CUDA device" in line for line in skipped)


@pytest.mark.parametrize("sanitizer", [False, True])
def test_with_a_gpu_each_step_runs_and_failures_are_named(tmp_path, sanitizer):
    # A pretended Python that notes its arguments, has everything, and fails the targets.
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "ran: $*"\n[ "$2" != benchmarks.targets ]\n'
    )
    python.chmod(0o755)
    if sanitizer:
        tool = tmp_path / "compute-sanitizer"
        tool.write_text('#!/bin/sh\necho "sanitizer: $*"\n')
        tool.chmod(0o755)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fake_quantize-cuda.json").touch()
    done = gpu_check(python, tmp_path / "results", f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 1
    assert done.stdout.endswith("failed: targets\n")
    assert "ran: -m pytest -m cuda tests" in done.stdout
    for suite in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"ran: -m pytest benchmarks/{suite.name}" in done.stdout
    for batch in (16, 256):
        assert f"--model resnet18 --batch {batch} --write-results" in done.stdout
    assert "fake_quantize-cuda.json" in done.stdout.partition("ran: -m benchmarks.targets")[2]
    tools = [f"--tool {t} " in done.stdout for t in ("memcheck", "racecheck", "synccheck")]
    assert tools == [sanitizer] * 3
    assert ("skipped: compute-sanitizer" in done.stdout) is not sanitizer
