"""A recipe's precision holds in every phase of a run, whatever PyTorch's own switches say."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import nn

from synq_fast import ops
from synq_fast.bank import batches
from tests.tiny import labelled, run, tiny_net


def seen_in_each_phase(monkeypatch, overrides):
    """Phase to the (TF32, type of the activations) of each product in it."""
    from synq_fast.engine import run as engine
    from synq_fast.runtime.precision import matmul_uses_tensor_float32

    phase, seen = ["before"], defaultdict(set)
    function = torch.nn.functional.linear
    low_pass, bar = ops.low_pass, engine.Run.phase

    def noted(x, *arguments, **options):
        y = function(x, *arguments, **options)
        tf32 = {matmul_uses_tensor_float32(), torch.backends.cudnn.allow_tf32}
        seen[phase[0]].add((*tf32, y.dtype))
        return y

    def filtered(*arguments, **options):
        seen["filter"].add((matmul_uses_tensor_float32(), torch.float32))
        return low_pass(*arguments, **options)

    def titled(self, title, total):
        phase[0] = title
        return bar(self, title, total)

    monkeypatch.setattr(nn.functional, "linear", noted)
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda s, x: noted(x, s.weight, s.bias))
    monkeypatch.setattr(batches.ops, "low_pass", filtered)
    monkeypatch.setattr(engine.Run, "phase", titled)
    run(
        tiny_net(),
        overrides={"synthesis.centers.weight": 1.0, "synthesis.centers.steps": 2, **overrides},
    )
    return {name: found for name, found in seen.items() if name != "before"}


SINGLE = torch.float32
ALL = ("centers", "synthesis", "calibration", "fine-tuning", "filter")


@pytest.mark.parametrize("switch", [False, True], ids=["TF32 off", "TF32 on"])
def test_by_default_everything_is_in_float32(monkeypatch, switch):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = switch
    try:
        assert seen_in_each_phase(monkeypatch, {}) == {name: {(False, SINGLE)} for name in ALL}
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_each_section_has_its_own(monkeypatch):
    choice = {"synthesis.precision": "tf32", "finetune.precision": "bf16"}
    seen = seen_in_each_phase(monkeypatch, choice)
    assert seen["synthesis"] == seen["centers"] == {(True, SINGLE)}
    assert seen["calibration"] == seen["fine-tuning"] == {(False, torch.bfloat16)}
    assert seen["filter"] == {(False, SINGLE)}


def test_tensor_float32_in_calibration_and_fine_tuning(monkeypatch):
    seen = seen_in_each_phase(monkeypatch, {"finetune.precision": "tf32"})
    assert seen["synthesis"] == {(False, SINGLE)}
    assert seen["calibration"] == seen["fine-tuning"] == {(True, SINGLE)}


def test_evaluation_is_in_float32(monkeypatch):
    seen = []
    forward = torch.nn.Linear.forward

    def noted(self, x):
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled()))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    run(tiny_net(), overrides={"finetune.precision": "tf32"}, evaluation=labelled())
    assert {tf32 for tf32, inference in seen if inference} <= {False}
