"""The check of a GPU machine: its targets, every op, and the script itself."""

from __future__ import annotations

import json

import pytest

from benchmarks import every_op, results_file, targets
from benchmarks.rows import Comparison, Timing
from synq_fast import ops, reference
from synq_fast.ops import _installation as info

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
        assert "result 0" in every_op.check(op, "cpu", "cpu").wrong
    with monkeypatch.context() as patch:
        # The same values, with the gradient of two of them.
        patch.setattr(ops, op, lambda x, *a, **o: 2 * (y := right(x, *a, **o)) - y.detach())
        assert "gradient 0" in every_op.check(op, "cpu", "cpu").wrong


def test_an_op_that_fails_is_named(monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(ops, "low_pass", broken)
    assert every_op.check("low_pass", "reference", "cpu").wrong == "ZeroDivisionError: by zero"


def test_every_public_op_and_kernel_is_covered():
    assert set(reference.__all__) - {"read_range"} <= set(every_op.OPS)
    assert set(info.report().kernels) <= set(every_op.OPS)


needs_native = pytest.mark.skipif(
    ops.available_backends()["cpu"] is not None, reason="no native kernels here"
)


@needs_native
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_op_in_as_many_processes_gives_the_same(jobs, tmp_path, capsys):
    path = tmp_path / "verdicts.json"
    chosen = ["fake_quantize", "quantize_codes"]
    assert every_op.main(["--op", *chosen, "--jobs", jobs, "--json", str(path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == chosen
    stored = [every_op.Verdict(**v) for v in json.loads(path.read_text())["verdicts"]]
    assert stored == [every_op.Verdict(op, "cpu", True) for op in chosen]


@pytest.mark.parametrize("asked", ["triton", None], ids=["asked for", "the device's own"])
def test_a_missing_backend_is_a_failure(asked, tmp_path, capsys, monkeypatch):
    # As where a build has failed.
    monkeypatch.setattr(every_op, "backends", lambda op, device: [])
    path = tmp_path / "verdicts.json"
    choice = ["--backend", asked] if asked else []
    assert every_op.main(["--op", "fake_quantize", *choice, "--json", str(path)]) == 1
    assert "right" not in capsys.readouterr().out
    (stored,) = json.loads(path.read_text())["verdicts"]
    assert stored["backend"] == (asked or "cpu") and stored["wrong"]


def test_an_op_whose_process_ends_is_wrong(monkeypatch):
    monkeypatch.setattr(every_op.sys, "executable", "/bin/false")
    (verdict,) = every_op.in_a_process("low_pass", "cuda", "cuda", True)
    assert verdict.op == "low_pass" and "ended with status 1" in verdict.wrong


@needs_native
def test_every_op_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "verdicts.json"
    code = every_op.main(["--op", "fake_quantize", "--json", str(path)])
    assert code == 0 and "fake_quantize" in capsys.readouterr().out
    stored = json.loads(path.read_text())["verdicts"]
    assert all(v["op"] == "fake_quantize" and not v["wrong"] for v in stored)
