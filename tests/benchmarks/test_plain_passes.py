"""The floor of a step has the passes it says, and our step has no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import harness
from benchmarks.engine import engine_trainer
from benchmarks.plain_passes import plain_step, plain_synthesis
from benchmarks.published import published_step, step_config
from tests.benchmarks.workloads import tiny_workload


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))


class Counter(TorchDispatchMode):
    """Counts multiplications; FlopCounterMode itself does not bear autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def operations(call) -> int:
    with Counter() as counter:
        call()
    return counter.total


@pytest.fixture
def wide():
    """A network whose first layer, which needs no gradient of its input, costs next to nothing."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 1),
        nn.ReLU(),
        *(layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()


@pytest.mark.parametrize(("plain", "passes"), [(plain_step, 9), (plain_synthesis, 2)])
def test_plain_passes_are_as_many_as_they_say(wide, plain, passes):
    images = torch.randn(2, 1, 16, 16)
    forward = operations(lambda: wide(images))
    done = operations(plain(wide, images))
    assert done / forward == pytest.approx(passes, abs=0.05)


def test_our_step_does_the_same_passes():
    work = tiny_workload()
    trainer = engine_trainer(work)
    floor = operations(plain_step(work.teacher.module, work.images))
    assert operations(trainer.advance) == pytest.approx(floor, rel=0.03)
    assert operations(published_step(work, step_config(work))) > 1.8 * floor


def test_plain_step_gives_every_gradient(wide):
    images = torch.randn(2, 1, 8, 8)
    slope, *gradients = plain_step(wide, images)()
    assert slope.shape == images.shape
    assert [g.shape for g in gradients] == [p.shape for p in wide.parameters()]
    assert all(p.grad is None for p in wide.parameters())
