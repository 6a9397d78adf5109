"""Our and the published side of a comparison do the same work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import harness
from benchmarks.baselines.published_augmentation import augment_each, augment_together
from benchmarks.baselines.published_synthesis import PublishedSynthesis
from benchmarks.cases import Case
from benchmarks.engine import EngineSynthesis, Parts, engine_trainer
from benchmarks.published import PublishedIterations, published_step, step_config, synthesis_config
from benchmarks.reconstruction import EAGER_LAYOUTS, both_sides, difference
from synq_fast.finetune.losses import Distillation
from tests.benchmarks.workloads import tiny_workload


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        (Parts(), None),
        (Parts(low_pass=False), "filter"),
        (Parts(cam=False), "cam"),
        (Parts(difficulty_mask=False), "mask"),
    ],
)
def test_a_part_can_be_left_out(parts, missing):
    trainer = engine_trainer(tiny_workload(), parts)
    assert (trainer.iteration.batches.filter.kind == "none") == (missing == "filter")
    assert ("cam" in trainer.iteration.step.term_names) == (missing != "cam")
    kept = trainer.iteration.recipe.loss(Distillation).soft_labels_only_if_difficult
    assert kept == (missing != "mask")
    assert torch.isfinite(trainer.advance()).all()


def test_engine_and_published_step_see_the_same_ranges():
    work = tiny_workload()
    trainer = engine_trainer(work)
    step = published_step(work, step_config(work)).func.__self__
    names = [n for n, _ in trainer.iteration.student.named_buffers() if "quantize_" in n]
    assert names
    for name in names:
        ours, theirs = trainer.iteration.student.get_buffer(name), step.student.get_buffer(name)
        torch.testing.assert_close(ours.reshape(1), theirs.reshape(1), atol=1e-5, rtol=1e-5)


def test_steps_do_not_move():
    """Rounds are of equal work only while the weights stay."""
    work = tiny_workload()
    trainer = engine_trainer(work)
    before = [p.detach().clone() for p in trainer.iteration.student.parameters()]
    for _ in range(3):
        trainer.advance()
    for old, new in zip(before, trainer.iteration.student.parameters(), strict=True):
        torch.testing.assert_close(old, new.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", EAGER_LAYOUTS)
@pytest.mark.parametrize("rounding", ["soft", "straight"])
def test_plain_reconstruction_has_the_engines_gradients(rounding, layout):
    case = Case("resnet18", 8, 32)
    loop, sides = both_sides(rounding, case, batch_size=4)
    work, twin = loop.iteration, sides[layout]
    assert len(twin.parameters) == len(work.parameters) == 6
    assert difference(work, twin) < 1e-4
    twin.draws = [lambda x, keep: torch.ones_like(x, dtype=torch.bool)] * 3
    *values, _ = work.prepare(0)
    before = [p.grad.clone() for p in twin.parameters]
    twin.step(*values)
    changed = zip(before, twin.parameters, strict=True)
    assert all((old - p.grad).norm() > 0.1 * old.norm() for old, p in changed)


def test_steps_on_blocks_do_not_move():
    loop, sides = both_sides("straight", Case("resnet18", 8, 32), batch_size=4)
    for side in (loop, *sides.values()):
        trained = loop.iteration.parameters if side is loop else side.parameters
        before = [p.detach().clone() for p in trained]
        for _ in range(3):
            side.advance()
        for old, new in zip(before, trained, strict=True):
            torch.testing.assert_close(old, new.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(8, 12), (15, 9), (32, 32)])
@pytest.mark.parametrize("seed", range(5))
def test_augmentation_together_is_augmentation_of_each(shape, seed):
    images = torch.randn(5, 3, *shape, dtype=torch.float64, requires_grad=True)
    results = []
    for augment in (augment_each, augment_together):
        torch.manual_seed(seed)
        seen = augment(images, (0.4, 1.0))
        (slope,) = torch.autograd.grad(seen.square().sum(), images)
        results.append((seen, slope, torch.rand(1)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["step", "synthesis"])
def test_the_switch_of_the_augmentation_leaves_the_result(kind):
    work, losses = tiny_workload(), []
    for one_by_one in (True, False):
        if kind == "step":
            config = step_config(work, lean=True, augment_one_by_one=one_by_one)
            run = published_step(work, config)
            torch.manual_seed(0)
            losses.append(run()["kl"].item())
        else:
            config = replace(synthesis_config(work), augment_probability=1.0)
            torch.manual_seed(0)
            config = replace(config, augment_one_by_one=one_by_one)
            iterations = PublishedSynthesis(work.teacher.module, work.labels, config)
            losses.append(iterations.iterate().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_half_of_the_iterations_are_augmented(monkeypatch):
    work, seen = tiny_workload(), []
    iterate = PublishedSynthesis.iterate
    monkeypatch.setattr(
        PublishedSynthesis,
        "iterate",
        lambda run: (seen.append(run.config.augment_probability), iterate(run))[1],
    )
    config = synthesis_config(work)
    PublishedIterations(work, config, 4)()
    assert seen == [0, 0, 0, 0]
    seen.clear()
    PublishedIterations(work, replace(config, augment_probability=0.5), 4)()
    assert sorted(seen) == [0, 0, 1, 1]
    ours = EngineSynthesis(work, augment=True, iterations=4)
    ours()
    assert [run.iteration.augmentation.probability for run in ours._runs] == [1.0, 0.0]
    assert [run.done for run in ours._runs] == [2, 2]


def test_channels_last_leaves_the_terms():
    work, found = tiny_workload(), []
    for channels_last in (True, False):
        run = published_step(work, step_config(work, lean=True, channels_last=channels_last))
        torch.manual_seed(0)
        found.append({name: term.item() for name, term in run().items()})
    assert found[0] == pytest.approx(found[1], rel=1e-3)
