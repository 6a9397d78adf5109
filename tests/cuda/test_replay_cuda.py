"""Steps and iterations recorded as CUDA graphs: as unrecorded ones, without a wait."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synq_fast.bank.batches import BatchSource
from synq_fast.bank.images import ImageBank
from synq_fast.bank.mixing import MixedBatches
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Training, training_loop
from synq_fast.optimize.loop import Loop
from synq_fast.runtime.replay import Replayed
from synq_fast.synthesis.optimization import (
    Augmentation,
    ImageOptimization,
    Schedule,
    image_loop,
)
from synq_fast.synthesis.parametrization import Pixels
from tests.tiny import tiny_images, tiny_labels, tiny_pair, tiny_recipe

pytestmark = pytest.mark.cuda
CUDA = torch.device("cuda")
ROOT = Path(__file__).parents[2]


def test_replays_read_their_inputs_and_keep_their_state():
    state = torch.zeros(3, device=CUDA)
    work = Replayed(lambda x: state.add_(x).clone(), CUDA)
    results = [work(torch.full((3,), float(i), device=CUDA)) for i in range(8)]
    assert [result[0].item() for result in results] == [0, 1, 3, 6, 10, 15, 21, 28]


def test_recordings_may_share_memory():
    pool = torch.cuda.graph_pool_handle()
    double = Replayed(lambda x: (x * 2).sin(), CUDA, pool=pool)
    triple = Replayed(lambda x: (x * 3).sin(), CUDA, pool=pool)
    for i in range(12):
        x = torch.full((1 << 16,), float(i), device=CUDA)
        a, b = double(x), triple(x)
        assert torch.equal(a, (x * 2).sin()) and torch.equal(b, (x * 3).sin())


# In processes of their own: what these captures leave behind would show in every later test.
WAITS = """
import pytest, torch
from synq_fast.errors import SynqFastError
from synq_fast.runtime.replay import Replayed

cuda = torch.device("cuda")
work = Replayed(lambda x: x * x.sum().item(), cuda)
with pytest.raises(SynqFastError, match="cuda_graph = false"):
    for _ in range(5):
        work(torch.ones(2, device=cuda))
"""
FAILS = """
import pytest, torch
from synq_fast.runtime.capture import capture, warm_up
from tests.recording import recorded

cuda = torch.device("cuda")
x = torch.ones(2, device=cuda)
warm_up(lambda: x.sum().item(), cuda)
before = torch.cuda.current_stream()
for _ in range(2):
    with pytest.raises(RuntimeError):
        capture(lambda: x.sum().item(), cuda)
assert torch.cuda.current_stream() == before
torch.cuda.empty_cache()
graph, y = recorded(lambda: x * 2)
graph.replay()
assert y.tolist() == [2.0, 2.0]
torch.randn(3, device=cuda)
"""


@pytest.mark.parametrize("program", [WAITS, FAILS], ids=["found before", "found by the capture"])
def test_work_that_waits_is_an_error_and_leaves_the_process_usable(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_work_is_recorded_on_a_device_that_is_not_current():
    second = torch.device("cuda", 1)
    state = torch.zeros((), device=second)
    work = Replayed(lambda x: state.add_(x).clone(), second)
    results = [work(torch.ones((), device=second)).item() for _ in range(6)]
    assert results == [1, 2, 3, 4, 5, 6] and torch.cuda.current_device() == 0


def trained(record: bool, **overrides) -> tuple[list[torch.Tensor], Loop]:
    recipe = tiny_recipe(finetune__cuda_graph=record, finetune__learning_rate=1e-3, **overrides)
    teacher, student, points = tiny_pair(recipe)
    teacher.to(CUDA)
    student.to(CUDA)
    bank = ImageBank(tiny_images(10).to(CUDA), tiny_labels(10).to(CUDA))
    source = BatchSource(bank, 4, (0.5, 1.0), recipe.filter, 0)
    if recipe.finetune.mixup:
        source = MixedBatches(source, 4, recipe.finetune.mixup, 0)
    step = Step(teacher, student, points, recipe.finetune)
    trainer = training_loop(Training(step, student, source, recipe.finetune))
    return [trainer.advance() for _ in range(10)], trainer


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_recorded_step_trains_like_an_unrecorded_one(precision, norm):
    choice = {"finetune__precision": precision, "finetune__max_gradient_norm": norm}
    wanted, plain = trained(False, **choice)
    found, recorded = trained(True, **choice)
    assert recordings(recorded) == 1
    tolerance = 2e-2 if precision == "bf16" else 1e-4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for one, other in zip(recorded.iteration.trained(), plain.iteration.trained(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


OF_METHODS = {
    "finetune__steps": 10,
    "finetune__mixup": 1.0,
    "finetune__distillation__label_weight": 0.0,
    "finetune__pseudo_labels__entropy_thresholds": [1.0, 0.98],
    "finetune__disagreement__temperature": 5.0,
    "finetune__feature_distance__weight": 1.0,
}


def test_recorded_step_reads_mixed_images_and_how_far_the_training_is():
    wanted, plain = trained(False, **OF_METHODS)
    found, recorded = trained(True, **OF_METHODS)
    assert recordings(recorded) == 1
    place = list(recorded.iteration.names).index("reliable_ce")
    assert found[0][place] > 0 and found[-1][place] == 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(recorded.iteration.trained(), plain.iteration.trained(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", [{}, OF_METHODS], ids=["SynQ", "others"])
@pytest.mark.parametrize("record", [False, True])
def test_no_step_waits_for_the_device(record, choice):
    _, trainer = trained(record, **choice)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            trainer.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def recordings(loop: Loop) -> int:
    return sum(work._graph is not None for work in loop._works.values())


def optimized(record: bool) -> tuple[torch.Tensor, Loop]:
    pixels = Pixels(tiny_images(6).to(CUDA), tiny_labels(6).to(CUDA))
    optimization = ImageOptimization(
        pixels,
        lambda x, labels: {"square": x.square().mean(), "sum": x.sin().mean()},
        Schedule(steps=40, learning_rate=0.1, min_learning_rate=1e-4, patience=2),
        torch.Generator().manual_seed(0),
        CUDA,
        augmentation=Augmentation(0.5, (0.4, 1.0)),
    )
    loop = image_loop(optimization, record=record)
    loop.run()
    return pixels.pixels.detach(), loop


def test_recorded_synthesis_makes_the_same_images():
    wanted, plain = optimized(False)
    found, recorded = optimized(True)
    assert recordings(recorded) == 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    rates = (loop.iteration.plateau.rate.item() for loop in (recorded, plain))
    assert next(rates) == pytest.approx(next(rates))


def test_no_iteration_waits_for_the_device():
    _, optimization = optimized(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            optimization.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
