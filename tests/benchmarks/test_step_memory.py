"""Peak memory of whole steps."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import harness
from benchmarks.cases import Case
from benchmarks.step_memory import PROGRAMS, program, step_peak
from tests.benchmarks.workloads import tiny_workload


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))


def test_programs_whose_memory_is_measured_run():
    for name in PROGRAMS:
        program(name, tiny_workload())()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_grows_with_the_batch():
    small, large = (
        step_peak("plain passes, 9F", Case("cifar10-resnet20", batch), threads=1)
        for batch in (4, 64)
    )
    # 64 images of 32 px keep more than 50 MB of activations in this network.
    assert large - small > 30e6
