"""The parts of a step's time: they are all of it, and each operation lands in its own."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import record_function

from benchmarks import breakdown, harness
from benchmarks.breakdown import (
    BACKWARD,
    CAM,
    DATA,
    FILTER,
    LOSSES,
    OPTIMIZER,
    OTHER,
    PARTS,
    QUANTIZERS,
    STUDENT,
    TEACHER,
    shares,
)
from benchmarks.engine import EngineSynthesis, engine_trainer
from benchmarks.plain_passes import plain_step
from benchmarks.rows import Timing
from synq_fast import ops
from tests.benchmarks.workloads import tiny_workload

# What the work of most tests consists of.
WORK = r"aten::(mm|_log_softmax|normal_)$|synq_fast::"
SLOW = 1000.0


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """Operations take a time that is given instead of measured; returns what sets the slow ones.

    Every operation's own time is 1, that of the slow ones 1000, however busy the machine is.
    """
    pattern = [re.compile(WORK)]

    def own(event: FunctionEvent) -> float:
        return SLOW if pattern[0].match(event.name) else 1.0

    def whole(event: FunctionEvent) -> float:
        return own(event) + sum(map(whole, event.cpu_children))

    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(FunctionEvent, "self_cpu_time_total", property(own))
    monkeypatch.setattr(FunctionEvent, "cpu_time_total", property(whole))
    return lambda names: pattern.__setitem__(0, re.compile(names))


def heavy(x: torch.Tensor) -> torch.Tensor:
    """One slow operation with a gradient."""
    return x @ torch.ones(len(x), len(x))


def dominant(call) -> str:
    found = shares(call, calls=2)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    part, share = max(found.items(), key=lambda item: item[1])
    assert share > 0.6, found
    return part


def scoped(part: str, call):
    with record_function(f"part: {part}"):
        return call()


MATRIX = torch.ones(7, 7)
IMAGES = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("part", [TEACHER, STUDENT, CAM, LOSSES, DATA])
def test_a_scope_holds_what_runs_in_it(part):
    assert dominant(lambda: scoped(part, lambda: heavy(MATRIX))) == part


@pytest.mark.parametrize(
    ("part", "call"),
    [
        (FILTER, lambda: ops.low_pass(IMAGES, 20.0)),
        (QUANTIZERS, lambda: ops.fake_quantize(IMAGES, -2.0, 2.0, 4)),
        (QUANTIZERS, lambda: ops.fake_quantize_dynamic(IMAGES, 4, axis=0)),
        (CAM, lambda: ops.grad_cam(IMAGES, IMAGES, (24, 24))),
        (LOSSES, lambda: ops.bn_statistics_loss(IMAGES, torch.zeros(3), torch.ones(3))),
        (DATA, lambda: torch.randn(9)),
        (LOSSES, lambda: torch.log_softmax(IMAGES, 3)),
        (OTHER, lambda: heavy(MATRIX)),
    ],
)
def test_operations_outside_of_scopes(part, call):
    assert dominant(call) == part


def test_our_kernels_keep_their_part_inside_a_network():
    assert dominant(lambda: scoped(STUDENT, lambda: ops.fake_quantize(IMAGES, -2.0, 2.0, 4))) == (
        QUANTIZERS
    )
    # There a softmax is the network's own.
    assert dominant(lambda: scoped(TEACHER, lambda: torch.log_softmax(IMAGES, 3))) == TEACHER


@pytest.mark.parametrize(
    ("forward", "part"), [(TEACHER, BACKWARD), (STUDENT, BACKWARD), (LOSSES, LOSSES), (CAM, CAM)]
)
def test_a_backward_belongs_to_what_recorded_it(forward, part):
    leaf = torch.ones(7, 7, requires_grad=True)

    def both() -> torch.Tensor:
        return scoped(forward, lambda: heavy(leaf))

    def only_backward() -> dict[str, float]:
        y = both()
        with torch.no_grad():
            grad = torch.ones_like(y)
        return torch.autograd.grad(y, leaf, grad)

    found = shares(only_backward, calls=4)
    expected = {forward, part}
    assert sum(found[name] for name in expected) > 0.7, found
    assert found[part] > 0.2
    assert found[BACKWARD] < 0.05 or part == BACKWARD


def test_a_backward_inside_a_scope_is_the_scopes():
    leaf = torch.ones(7, 7, requires_grad=True)

    def gradient() -> None:
        y = scoped(STUDENT, lambda: heavy(leaf)).sum()
        scoped(CAM, lambda: torch.autograd.grad(y, leaf))

    found = shares(gradient, calls=4)
    assert found[BACKWARD] == 0
    assert found[CAM] > 0.2 < found[STUDENT], found


def test_a_step_has_every_part_and_nothing_else():
    trainer = engine_trainer(tiny_workload())
    trainer.advance()
    training = trainer.iteration

    def scoped():
        step = training.step
        return training.batches, step.teacher, step.student, step.taps_of

    before = scoped()
    with breakdown.step_scopes(trainer):
        found = shares(trainer.advance)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    assert set(found) == set(PARTS)
    assert all(share > 0 for share in found.values()), found
    assert all(one is other for one, other in zip(before, scoped(), strict=True))


@pytest.mark.parametrize("where", ["batches", "teacher", "student", "optimizer"])
def test_work_that_is_added_to_a_step_appears_where_it_was_added(where, slow):
    # Of an operation that a step does not have.
    slow(r"aten::sinh$")
    trainer = engine_trainer(tiny_workload())
    owner, name = {
        "batches": (trainer.iteration.batches, "made"),
        "optimizer": (trainer.iteration, "optimizer"),
    }.get(where, (trainer.iteration.step, where))
    inner = getattr(owner, name)

    def slowed(*arguments):
        with torch.no_grad():
            torch.sinh(MATRIX)
        return inner(*arguments)

    if where == "optimizer":
        trainer.iteration.optimizer.register_step_pre_hook(lambda *_: (torch.sinh(MATRIX), None)[1])
    else:
        setattr(owner, name, slowed)
    trainer.advance()
    with breakdown.step_scopes(trainer):
        found = shares(trainer.advance)
    part = {"batches": DATA, "teacher": TEACHER, "student": STUDENT, "optimizer": OPTIMIZER}[where]
    assert max(found, key=found.__getitem__) == part, found


def test_a_synthesis_iteration():
    ours = EngineSynthesis(tiny_workload(), augment=True, iterations=4)
    ours()
    teachers = [synthesizer.teacher for synthesizer in ours.synthesizers]
    with breakdown.synthesis_scopes(ours.synthesizers):
        found = shares(ours)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    expected = {TEACHER, BACKWARD, LOSSES, OPTIMIZER, DATA, OTHER}
    assert {part for part, share in found.items() if share > 0} == expected
    assert [synthesizer.teacher for synthesizer in ours.synthesizers] == teachers


def test_the_table_adds_up(monkeypatch):
    timings = {"ours": Timing(3e-3, 3e-3, 0.0, 2), "plain": Timing(1e-3, 1e-3, 0.0, 2)}
    monkeypatch.setattr(harness, "interleave", lambda *_, **__: timings)
    work = tiny_workload()
    trainer = engine_trainer(work)
    table = breakdown.breakdown(
        "step",
        "tiny",
        trainer.advance,
        plain_step(work.teacher.module, work.images),
        trainer.advance,
        partial(breakdown.step_scopes, trainer),
        rounds=2,
    )
    rows = {name: numbers for name, *numbers in table.rows}
    assert list(rows) == [*PARTS, "all network passes", "all"]
    for place in range(3):
        assert sum(rows[part][place] for part in PARTS) == pytest.approx(rows["all"][place])
        networks = sum(rows[part][place] for part in (TEACHER, STUDENT, BACKWARD))
        assert networks == pytest.approx(rows["all network passes"][place])
    assert rows["all"][1] == pytest.approx(100, abs=1e-3)
    assert rows["all"][0] == pytest.approx(3) and rows["all"][2] == pytest.approx(3)
