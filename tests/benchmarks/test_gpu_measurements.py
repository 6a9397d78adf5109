"""What the check of a GPU machine measures, on a CPU and small: every row runs and is written."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import bandwidth, columns, harness, step_memory, step_times
from benchmarks.cases import Case
from benchmarks.rows import Timing
from synq_fast import ops
from synq_fast.runtime.precision import matmul_uses_tensor_float32
from synq_fast.runtime.replay import WARM_UP
from tests.benchmarks.workloads import tiny_workload


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))


@pytest.fixture
def untimed(monkeypatch):
    """Each column is called once; notes which, and what PyTorch computes in."""
    called = []

    def interleave(columns, **_):
        (name,) = columns
        columns[name]()
        called.append((name, matmul_uses_tensor_float32()))
        return {name: Timing(1e-3, 1e-3, 0.0, 1)}

    monkeypatch.setattr(harness, "interleave", interleave)
    return called


@pytest.mark.skipif(ops.available_backends()["cpu"] is not None, reason="no native kernels here")
def test_every_row_of_bandwidth(untimed, tmp_path, capsys):
    path = tmp_path / "bandwidth.json"
    assert bandwidth.main(["--backend", "cpu", "--batch", "1", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    names = [row["name"] for row in content["bandwidth"]]
    assert len(names) == len(set(names)) == len(untimed) - 1 > 40
    assert content["copy"] > 0 and content["environment"]["torch"] == torch.__version__
    # What the engine runs: both layouts and both types of everything done to an activation.
    kinds = [(layout, dtype) for layout in ("nchw", "nhwc") for dtype in ("float32", "bfloat16")]
    activations = {name.rpartition(", ")[0] for name in names if name.endswith("nchw bfloat16")}
    assert len(activations) > 8
    assert {f"{a}, {layout} {d}" for a in activations for layout, d in kinds} <= set(names)
    assert capsys.readouterr().out.count("of copy") == len(names)


def test_a_row_that_fails_is_named_and_stops_nothing(untimed, monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise RuntimeError("out of paper\nmore")

    monkeypatch.setattr(ops, "update_range", broken)
    path = tmp_path / "bandwidth.json"
    asked = ["--backend", "cpu", "--batch", "1", "--only", "_range", "--json", str(path)]
    assert bandwidth.main(asked) == 1
    rows = {row["name"]: row for row in json.loads(path.read_text())["bandwidth"]}
    failed = {name for name, row in rows.items() if row["seconds"] is None}
    assert failed == {name for name in rows if name.startswith("update_range")}
    assert capsys.readouterr().out.count("FAILED: RuntimeError: out of paper") == 4
    assert len(rows) > len(failed)


@pytest.mark.parametrize("precisions", [["float32"], ["float32", "tf32"]])
def test_every_program_of_steps_in_each_arithmetic(untimed, monkeypatch, precisions, tmp_path):
    seen = []
    build = step_times.engine_trainer

    def trainer(work, **choice):
        seen.append(choice["precision"])
        return build(work, **choice)

    monkeypatch.setattr(step_times, "engine_trainer", trainer)
    monkeypatch.setattr(harness, "precisions", lambda: precisions)
    monkeypatch.setattr(step_times, "load", lambda case: tiny_workload())
    path = tmp_path / "steps.json"
    assert step_times.main(["--case", "tiny:4", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["steps"]
    wanted = [(p, name) for p in precisions for name in step_times.PROGRAMS]
    assert [(row["precision"], row["program"]) for row in rows] == wanted
    assert untimed == [(name, p == "tf32") for p, name in wanted]
    assert set(seen) == set(precisions)
    per_call = {row["program"]: row["seconds"] for row in rows}
    assert per_call["iteration"] == per_call["step"] / step_times.ITERATIONS


def test_a_gpus_networks_are_compared_in_both_arithmetics(monkeypatch):
    work = tiny_workload()
    assert harness.precisions() == ["float32"] and work.titled("float32") == work.title
    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    assert harness.precisions() == ["float32", "tf32"]
    assert work.titled("tf32") == f"{work.title}, tf32"


def test_recorded_work_is_timed_only_when_it_is_replayed(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(harness, "synchronize", lambda: None)
    calls = []
    harness.interleave({"ours": lambda: calls.append(1)}, rounds=2, warmup=1, clock="wall")
    # Three plain calls, the recording and a replay come before the two that are timed.
    assert len(calls) == harness.RECORDED + 2 and harness.RECORDED == WARM_UP + 2


def test_peak_memory_on_a_gpu_is_that_of_the_recording(monkeypatch):
    calls, peak_from = [], []
    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(step_memory, "load", lambda case: None)
    monkeypatch.setattr(step_memory, "program", lambda *_: lambda: calls.append(1))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 110)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak_from.append(len(calls)))
    assert step_memory.step_peak("ours", Case("resnet18", 16)) == 100
    # The call after the warm-up is the recording.
    assert peak_from == [WARM_UP] and len(calls) == harness.RECORDED


SMALL = (2, 4, 5, 3)
MAP = {"shape": (2, 4, 5, 3), "size": (10, 6), "grid": None}
TOKENS = {"shape": (2, 9, 8)}
# What each suite is given here of what it does not take from `KINDS`.
SUITES: dict[str, dict[str, object]] = {
    "bn_statistics_loss.bench_bn_statistics_loss": {"shape": SMALL},
    "cam_alignment_loss.bench_cam_alignment_loss": MAP,
    "channel_moments.bench_channel_moments": {"backward": True},
    "distillation_loss.bench_distillation_loss": {"shape": (6, 10), "backward": True},
    "fake_quantize.bench_fake_quantize": {"shape": SMALL, "axis": 1},
    "fake_quantize_dynamic.bench_fake_quantize_dynamic": {
        "shape": SMALL,
        "axis": 0,
        "symmetric": False,
    },
    "fake_quantize_learned.bench_fake_quantize_learned": {"shape": SMALL, "axis": 0, "keep": 0.5},
    "grad_cam.bench_grad_cam": {**MAP, "kind": "grad_cam"},
    "inter_head_similarity_loss.bench_inter_head_similarity_loss": {
        "shape": (2, 3, 9, 9),
        "backward": True,
    },
    "low_pass.bench_low_pass": {"kind": "gaussian", "shape": (2, 3, 9, 8), "cutoff": 2.0},
    "patch_similarity_entropy.bench_patch_similarity_entropy": {**TOKENS, "backward": True},
    "quantized_attention.bench_quantized_attention": {
        "shape": (2, 3, 9, 8),
        "bits": 8,
        "p_grid": "uniform",
        "backward": True,
    },
    "random_mix.bench_random_mix": {"shape": SMALL},
    "relu_fake_quantize.bench_relu_fake_quantize": {
        "shape": SMALL,
        "op": "affine_residual_relu",
        "backward": True,
    },
    "search_range.bench_search_range": {"shape": SMALL},
    "search_range.bench_search_range_by_channel": {"shape": SMALL},
    "soft_round.bench_soft_round": {"shape": SMALL},
    "structural_similarity_loss.bench_structural_similarity_loss": {
        "shape": (2, 3, 9, 8),
        "backward": True,
    },
    "total_variation.bench_total_variation": {"shape": SMALL},
    "transformer_fake_quantize.bench_activation_on_small_floats": {**TOKENS, "name": "silu"},
    "transformer_fake_quantize.bench_fake_quantize_log": TOKENS,
    "transformer_fake_quantize.bench_fake_quantize_minifloat": TOKENS,
    "transformer_fake_quantize.bench_transformer_fake_quantize": {**TOKENS, "name": "layer_norm"},
    "update_range.bench_update_range": {"shape": SMALL},
}
# What has neither types nor layouts to choose from, and why.
OTHER_SUITES = {
    "blocks": "whole steps",
    "bn_statistics_loss.bench_network": "the layers of a network in float32",
    "call_overhead": "the cost of a call",
    "int8_product": "codes are int8 and lie in rows",
    "inter_head_similarity_loss.bench_peak_memory": "resident memory",
    "pack_codes": "codes are int8 and lie in rows",
    "patch_similarity_entropy.bench_peak_memory": "resident memory",
    "step": "whole steps",
    "synthesis": "whole steps",
    "transformer": "whole steps",
}


def test_every_suite_is_measured_in_the_types_of_the_engine_or_has_a_reason():
    found = set()
    for path in sorted(Path(harness.__file__).parent.glob("bench_*.py")):
        suite = path.stem.removeprefix("bench_")
        benches = re.findall(r"^def (bench_\w+)", path.read_text(), re.MULTILINE)
        found |= {suite} if suite in OTHER_SUITES else {f"{suite}.{name}" for name in benches}
    assert found == SUITES.keys() | OTHER_SUITES.keys()


@pytest.mark.parametrize("suite", SUITES)
def test_a_gpus_suites_have_the_types_and_layouts_of_the_engine(suite, monkeypatch):
    """As they are collected on a GPU, and run here, small and without torch.compile."""
    file, name = suite.split(".")
    module = importlib.import_module(f"benchmarks.bench_{file}")
    bench, made = getattr(module, name), []
    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    assert harness.dtypes() == [torch.float32, torch.bfloat16]
    assert harness.layouts() == list(harness.MEMORY_FORMATS) == ["contiguous", "channels_last"]
    names = inspect.signature(bench).parameters.keys() - {"compare"}
    laid = names & {"layout", "memory_format"}
    layouts = harness.layouts() if laid else ["contiguous"]
    dtypes = harness.dtypes() if "dtype" in names else [torch.float32]
    kinds = [(dtype, layout) for dtype in dtypes for layout in layouts]
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(module, "SHAPE", SMALL, raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(columns, "compiled_column", lambda *_, **__: (None, "not here"))
    for dtype, layout in kinds:
        choices = {"dtype": dtype, "layout": layout, "memory_format": layout, **SUITES[suite]}

        def compare(case, rows, **given):
            for call in rows.values():
                call()
            made.append((case, given["bytes_moved"]))

        bench(**{name: choices[name] for name in names}, compare=compare)
    titles = [case for case, _ in made]
    assert len(set(titles)) == len(kinds)
    assert [case for case in titles if "bfloat16" in case] == titles[len(layouts) :]
    assert [case for case in titles if "channels_last" in case] == (titles[1::2] if laid else [])
    sizes = [nbytes for _, nbytes in made]
    assert len(set(sizes)) == len(dtypes)
    assert 0 < min(sizes) == sizes[-1] <= sizes[0]


def test_on_a_cpu_the_suites_stay_as_they_are():
    assert harness.dtypes() == [torch.float32] and harness.layouts() == ["contiguous"]
    assert harness.kind("contiguous", torch.float32) == ""
