"""What the benchmarks of whole steps run: models, plain passes, SynQ's parts, switches, tables."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import harness, results_file, switches
from benchmarks.baselines.published_augmentation import augment_each, augment_together
from benchmarks.baselines.published_config import PublishedStepConfig
from benchmarks.baselines.published_synthesis import PublishedSynthesis, PublishedSynthesisConfig
from benchmarks.cases import Case, chosen, load
from benchmarks.engine import EngineSynthesis, Parts, engine_trainer
from benchmarks.plain_passes import plain_step, plain_synthesis
from benchmarks.published import PublishedIterations, published_step, step_config, synthesis_config
from benchmarks.rows import Comparison, Timing
from benchmarks.step_memory import PROGRAMS, program, step_peak
from benchmarks.tables import Table, targets_table
from synq_fast.errors import ModelError
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
    assert (trainer.batches.filter.kind == "none") == (missing == "filter")
    assert ("cam" in trainer.step.term_names) == (missing != "cam")
    kept = trainer.recipe.distillation.soft_labels_only_if_difficult
    assert kept == (missing != "mask")
    assert torch.isfinite(trainer.advance()).all()


def test_engine_and_published_step_see_the_same_ranges():
    work = tiny_workload()
    trainer = engine_trainer(work)
    step = published_step(work, step_config(work)).func.__self__
    names = [n for n, _ in trainer.student.named_buffers() if "quantize_" in n]
    assert names
    for name in names:
        ours, theirs = trainer.student.get_buffer(name), step.student.get_buffer(name)
        torch.testing.assert_close(ours.reshape(1), theirs.reshape(1), atol=1e-5, rtol=1e-5)


def test_steps_do_not_move():
    """Rounds are of equal work only while the weights stay."""
    work = tiny_workload()
    trainer = engine_trainer(work)
    before = [p.detach().clone() for p in trainer.student.parameters()]
    for _ in range(3):
        trainer.advance()
    for old, new in zip(before, trainer.student.parameters(), strict=True):
        torch.testing.assert_close(old, new.detach(), atol=1e-6, rtol=0)


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


def test_a_factory_needs_no_shape_of_its_own():
    case = Case("tests.benchmarks.test_step_workloads:Small", 2, 12)
    assert load(case).images.shape == (2, 3, 12, 12)
    with pytest.raises(ModelError):
        Case("no-such-model").teacher()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def test_options_choose_the_case():
    def config(**given):
        return SimpleNamespace(getoption=lambda name: given.get(name.removeprefix("--")))

    defaults = [Case("a", 7), Case("b", 8)]
    assert chosen(config(), defaults) == defaults
    assert chosen(config(model="c"), defaults) == [Case("c", 7)]
    assert chosen(config(batch=3, size=64), defaults) == [Case("cifar10-resnet20", 3, 64)]


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
    recipes = [synthesizer.recipe for synthesizer in ours.synthesizers]
    assert [(r.augment_probability, r.steps) for r in recipes] == [(1.0, 2), (0.0, 2)]


def test_channels_last_leaves_the_terms():
    work, found = tiny_workload(), []
    for channels_last in (True, False):
        run = published_step(work, step_config(work, lean=True, channels_last=channels_last))
        torch.manual_seed(0)
        found.append({name: term.item() for name, term in run().items()})
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("switch", switches.step_switches())
def test_each_switch_of_a_step_is_measured_alone(switch, monkeypatch):
    seen = []
    monkeypatch.setattr(switches, "published_step", lambda work, config: seen.append(config))
    switches.step_variant(tiny_workload(), switch)
    published, without, lean, alone = seen
    field = "standing_hooks" if switch == "leak_hooks" else switch
    for on, off in ((published, without), (alone, lean)):
        assert getattr(on, field) and not getattr(off, field)
        assert replace(on, **{field: getattr(off, field)}) == off
    # What the switch acts on is there in the lean step too.
    if switch in switches._NEEDS:
        assert lean.separate_cam_pass


def test_no_switch_is_forgotten():
    costs = set(PublishedStepConfig.costs())
    lean, full = PublishedStepConfig.lean(), PublishedStepConfig()
    differing = {name for name in vars(full) if getattr(full, name) != getattr(lean, name)}
    assert differing == costs == set(switches.step_switches())
    work = tiny_workload()
    small = set(switches.synthesis_switches(work))
    assert small == set(PublishedSynthesisConfig.costs()) - {"augment_one_by_one"}
    large = replace(work, images=torch.ones(1, 2, 64, 64))
    assert set(switches.synthesis_switches(large)) == set(PublishedSynthesisConfig.costs())


@pytest.mark.parametrize("switch", ["leak_hooks", "copy_to_host"])
def test_switches_of_the_loop_run(switch):
    variant = switches.synthesis_variant(tiny_workload(), switch, 2)
    for call in (variant.published, variant.without, variant.lean, variant.alone):
        call()


def test_a_cost_is_found_and_the_dearest_comes_first():
    def work(repeats: int):
        return lambda: [torch.ones(200, 200) @ torch.ones(200, 200) for _ in range(repeats)]

    dear = switches.Variant("dear", work(40), work(20), work(2), work(20))
    cheap = switches.Variant("cheap", work(40), work(39), work(2), work(2))
    rows = [switches.costs(variant, rounds=5, works=2) for variant in (cheap, dear)]
    table = switches.table("step", "title", rows, "note")
    assert [row[0] for row in table.rows] == ["dear", "cheap"]
    _, saved, of_published, added, of_lean = table.rows[0]
    assert 25 < of_published < 75 and of_lean > 200
    assert saved > 0 and added > 0


def test_a_tables_text_and_file(tmp_path):
    table = Table(
        "step", "title", ("part", "ms", "%"), [("all", 12.3456, 100.0), ("x", None, "no")]
    )
    lines = table.text().splitlines()
    assert lines[0] == "step: title"
    assert lines[2].split() == ["all", "12.3", "100"] and lines[3].split() == ["x", "-", "no"]
    assert len({len(line) for line in lines[1:]}) == 1
    row = Comparison("synthesis", "c", "default", {"a": Timing(1, 1, 0, 2)})
    paths = results_file.write_results([row], tmp_path, tables=[table])
    assert [path.name for path in paths] == ["synthesis-cpu.json", "step-cpu.json"]
    assert "tables" not in json.loads(paths[0].read_text())
    assert json.loads(paths[1].read_text())["tables"][0]["rows"] == [
        ["all", 12.3456, 100.0],
        ["x", None, "no"],
    ]
    assert results_file.read_file(paths[1])[1] == []
    with pytest.raises(ValueError, match="3 columns"):
        Table("step", "t", ("a", "b", "c"), [("x", 1.0)])


def test_targets_say_whether_they_hold():
    timings = {name: Timing(t, t, 0, 3) for name, t in {"ours": 1.0, "a": 3.0, "b": 1.2}.items()}
    row = Comparison("step", "c", "raised", timings, ours="ours")
    table = targets_table(row, {"a": 3.2, "b": 1.1})
    assert [line[0] for line in table.rows] == ["a", "b"]
    assert [line[-1] for line in table.rows] == ["missed", "holds"]


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
