"""Models and batches of the benchmarks of whole steps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import harness
from benchmarks.cases import Case, chosen, load
from synq_fast.errors import ModelError


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))


@pytest.mark.parametrize("batch", [1, 5])
def test_a_case_is_a_named_model_of_any_batch_and_size(batch):
    work = load(Case("cifar10-resnet20", batch, 24))
    assert work.images.shape == (batch, 3, 24, 24)
    assert work.teacher.input_shape == (3, 24, 24)
    assert work.title == f"cifar10-resnet20 24px batch {batch}"
    logits = work.teacher.module(torch.randn(16, 3, 24, 24))
    # With its initial statistics an untrained network's activations grow without end.
    assert 0.01 < logits.std() < 10
    assert (work.rounds(9, 2), replace(work, images=torch.ones(1, 3, 64, 64)).rounds(9, 2)) == (
        9,
        2,
    )


def test_cases_of_the_same_name_are_the_same_network():
    one, other = (Case("digits-resnet20").teacher().module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def test_a_factory_needs_no_shape_of_its_own():
    case = Case("tests.benchmarks.test_cases:Small", 2, 12)
    assert load(case).images.shape == (2, 3, 12, 12)
    with pytest.raises(ModelError):
        Case("no-such-model").teacher()


def test_options_choose_the_case():
    def config(**given):
        return SimpleNamespace(getoption=lambda name: given.get(name.removeprefix("--")))

    defaults = [Case("a", 7), Case("b", 8)]
    assert chosen(config(), defaults) == defaults
    assert chosen(config(model="c"), defaults) == [Case("c", 7)]
    assert chosen(config(batch=3, size=64), defaults) == [Case("cifar10-resnet20", 3, 64)]
