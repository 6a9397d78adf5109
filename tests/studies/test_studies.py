"""What each study finds, against formulas of its own."""

import dataclasses
import json
import math
import statistics

import numpy as np
import pytest
import torch

import synq_fast
from synq_fast.bank.batches import filtered
from synq_fast.errors import ArgumentError, RecipeError
from synq_fast.graph.structure import Structure
from synq_fast.recipes import load_recipe
from synq_fast.studies import cam, labels, noise, overhead
from synq_fast.studies.study import spread
from synq_fast.studies.workbench import Workbench
from tests.studies.small import SEEDS, real, small
from tests.tiny import TINY_OVERRIDES, tiny_teacher


def bench(**changes) -> Workbench:
    """What the studies of the session worked with."""
    recipe = load_recipe("synq-digits", TINY_OVERRIDES)
    widths = synq_fast.engine.calls.parse_bits("w4a4")
    given = (tiny_teacher(), recipe, widths, SEEDS, torch.device("cpu"))
    return Workbench(*given, **{"data": real(), **changes})


@pytest.mark.parametrize("name", ["overhead", "noise", "cam", "labels", "spectra"])
def test_rows_are_what_is_declared_and_finite(found, name):
    result = found[name]
    assert result.rows and result.findings and result.name == name
    fields = dataclasses.fields(result.rows[0])
    for row in result.rows:
        for field in fields:
            value = getattr(row, field.name)
            if isinstance(value, float):
                assert math.isfinite(value), (row, field.name)
    titles = [f.name for f in fields if not isinstance(getattr(result.rows[0], f.name), list)]
    assert f"| {' | '.join(titles)} |" in str(result)
    assert str(result).count("\n| ") == len(result.rows) + 1


# Overhead


def test_overhead_times_every_part_alone_and_together(found):
    rows = found["overhead"].rows
    steps = {row.case: row for row in rows if row.work == overhead.STEP}
    assert list(steps) == ["base method", *overhead.OFF, "all three"]
    assert steps["base method"].adds == 0 and steps["base method"].fastest == 0
    for row in rows:
        assert row.milliseconds > 0 and row.low <= row.adds <= row.high and row.rounds == 4
    assert steps["all three"].batch == 4
    iteration = [row for row in rows if row.work == overhead.ITERATION]
    assert [row.case for row in iteration] == ["base method", "low-pass filter, once"]
    assert iteration[1].adds > 0


def test_overhead_is_the_median_of_the_ratios_of_a_round():
    times = {"base": [1.0, 2.0, 4.0, 1.0], "own": [1.1, 2.6, 4.0, 1.4]}
    row = overhead.Overhead()._row("step", "own", times["own"], times["base"], 7)
    ratios = sorted(100 * (a / b - 1) for a, b in zip(times["own"], times["base"], strict=True))
    assert row.adds == pytest.approx(statistics.median(ratios), abs=1e-3)
    low, _, high = np.quantile(ratios, [0.25, 0.5, 0.75], method="weibull")
    assert (row.low, row.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert row.fastest == pytest.approx(10.0) and row.milliseconds == pytest.approx(2000.0)


def test_a_variant_lacks_what_the_recipe_switches_off(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        overhead, "_step", lambda bench, recipe, size: seen.update({len(seen): recipe}) or (int)
    )
    next(overhead.Overhead(rounds=4).parts(bench())).make()
    recipes = dict(zip(["base", *overhead.OFF, "all"], seen.values(), strict=True))

    def has(recipe):
        distillation, maps = recipe.finetune.losses[0], recipe.finetune.loss(cam.CamLoss)
        on = distillation.soft_labels_only_if_difficult
        return recipe.filter.kind != "none", maps.weight > 0, on

    assert has(recipes["base"]) == (False, False, False)
    assert has(recipes["low-pass filter"]) == (True, False, False)
    assert has(recipes["CAM alignment"]) == (False, True, False)
    assert has(recipes["soft labels"]) == (False, False, True)
    assert has(recipes["all"]) == (True, True, True)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"filter.kind": "none"}, "low-pass filter"),
        ({"finetune.cam.weight": 0.0}, "CAM alignment"),
        ({"finetune.distillation.label_weight": 0.0}, "soft labels"),
        ({"stages": ["synthesis", "calibration"]}, "stage finetune"),
    ],
)
def test_overhead_of_what_a_recipe_lacks_is_refused(values, what):
    with pytest.raises(RecipeError, match=f"has no .*{what}.*synq-cifar"):
        small("overhead", overrides={**TINY_OVERRIDES, **values})


def test_overhead_by_the_process_clock(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(overhead.time, "process_time", lambda: next(ticks))
    study = overhead.Overhead(rounds=4, clock="process")
    assert study._seconds(lambda: None, torch.device("cpu")) == 1
    elsewhere = bench()
    elsewhere.device = torch.device("cuda")
    with pytest.raises(ArgumentError, match="clock = wall"):
        next(study.parts(elsewhere))


# Noise


def test_noise_has_every_combination_and_what_the_float_network_says(found):
    rows = found["noise"].rows
    combinations = {(row.kind, row.strength, row.cutoff, row.seed) for row in rows}
    noises = [(noise.CLEAN, 0.0), ("white", 1.0), ("blocks", 1.0)]
    assert combinations == {
        (k, s, c, seed) for k, s in noises for c in (None, 3.0) for seed in SEEDS
    }
    work = bench()
    images = work.bank(1)
    clean = next(r for r in rows if (r.kind, r.cutoff, r.seed) == (noise.CLEAN, None, 1))
    with torch.no_grad():
        p = torch.softmax(work.teacher.module(images.images).double(), 1)
    agree = (p.argmax(1) == images.labels).double().mean()
    assert clean.agreement == pytest.approx(100 * float(agree))
    own = p[torch.arange(len(p)), images.labels]
    assert clean.difficulty == pytest.approx(float((1 - own).mean()), abs=1e-5)


def test_noise_trains_what_quantize_trains(found):
    short = {
        "finetune.steps": 2,
        "finetune.perturbation.weight": 0.0,
        "finetune.features.weight": 0.0,
        "finetune.cam.weight": 0.0,
        "filter.cutoff": 3.0,
    }
    work = bench()
    expected = synq_fast.quantize(
        work.teacher, work.varied(short), "w4a4", seed=1, evaluation=real(), progress=False
    ).metrics
    rows = found["noise"].rows
    row = next(r for r in rows if (r.kind, r.cutoff, r.seed) == (noise.CLEAN, 3.0, 1))
    assert row.calibrated == expected["post-training"]["top1"]
    assert row.trained == expected["quantized"]["top1"]


# Maps


def test_maps_of_every_student_at_every_layer(found):
    rows = found["cam"].rows
    layers = list(dict.fromkeys(row.layer for row in rows))
    assert len(layers) == 1 and layers[0] == "conv2"
    for row in rows:
        assert row.count == 6 and 0 <= row.flat <= 6
        if row.flat == 6:
            assert (row.mean, row.low, row.median, row.high) == (None,) * 4
        else:
            assert 0 <= row.low <= row.median <= row.high <= 1 + 1e-6 and row.mean <= 1 + 1e-6
    assert sum(row.flat < 6 for row in rows) > len(rows) / 2
    assert len(rows) == len(SEEDS) * len(cam.STUDENTS) * 2 * 2
    assert {row.images for row in rows} == {"synthetic", "photographs"}


def test_maps_before_training_are_those_of_the_calibrated_network(found):
    work = bench()
    run = work.run(0)
    student = next(made for stage, made in work.stages(run, work.source(0)))
    images = filtered(work.source(1).sample(6)[0], work.recipe.filter)

    def maps(network):
        taken = {}
        for node in network.graph.nodes:
            if node.name == "conv2":
                target = node.target
        handle = network.get_submodule(target).register_forward_hook(
            lambda module, given, out: taken.update(a=out)
        )
        logits = network(images)
        handle.remove()
        with torch.no_grad():
            classes = run.graph(images).argmax(1)
        (g,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), taken["a"])
        weights = g.double().mean((2, 3), keepdim=True).clamp_min(1e-10)
        flat = (weights * taken["a"].double()).sum(1).relu()
        low, high = flat.amin((1, 2), keepdim=True), flat.amax((1, 2), keepdim=True)
        return ((flat - low) / (high - low + 1e-10)).flatten(1)

    for parameter in run.graph.parameters():
        parameter.requires_grad_(True)
    a, b = maps(run.graph), maps(student)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    kind, layer = "grad_cam", "conv2"
    row = next(
        r
        for r in found["cam"].rows
        if (r.seed, r.student, r.images, r.kind, r.layer)
        == (0, cam.CALIBRATED, "synthetic", kind, layer)
    )
    assert row.mean == pytest.approx(float(cosine[~cosine.isnan()].detach().mean()), abs=1e-4)
    assert row.flat == int(cosine.isnan().sum())


def test_the_alignments_own_part_is_paired_by_seed():
    def row(seed, student, mean):
        values = (mean,) * 4
        return cam.CamRow(seed, student, "synthetic", "conv", "grad_cam", *values, 0, 6, None)

    rows = [row(0, cam.WITHOUT, 0.5), row(0, cam.WITH, 0.6), row(1, cam.WITH, 0.9)]
    rows += [row(1, cam.WITHOUT, 0.7), row(2, cam.WITH, None), row(2, cam.WITHOUT, 0.1)]
    assert cam._gains(rows, "synthetic", "conv", "grad_cam") == pytest.approx([0.1, 0.2])
    (said,) = cam.Cam().findings([*rows, row(0, cam.CALIBRATED, 0.4)])
    assert "0.400 calibrated" in said and "own part +0.150 ± 0.071 over the seeds" in said


def test_layers_are_spread_over_the_bodies():
    structure = Structure((), tuple(f"body{n}" for n in range(9)), ("last",))
    assert cam.layers_of(structure, 3) == ["body0", "body4", "last"]
    assert cam.layers_of(structure, 1) == ["last"]
    with pytest.raises(synq_fast.SynqFastError, match="no class activation maps"):
        cam.layers_of(Structure((), (), ()), 3)


def test_a_recipe_without_maps_is_refused_until_a_weight_is_given():
    off = {**TINY_OVERRIDES, "finetune.cam.weight": 0.0}
    with pytest.raises(RecipeError, match="option weight"):
        small("cam", overrides=off)
    given = {"steps": 1, "images": 4, "layers": 1, "weight": 50.0}
    assert small("cam", overrides=off, seeds=[0], options=given).rows


# Labels


def test_difficulty_and_errors_of_the_labelled_images(found):
    own = [row for row in found["labels"].rows if row.images == "photographs"]
    images, truth = next(iter(real().batches(64)))
    with torch.no_grad():
        p = torch.softmax(tiny_teacher().module(images).double(), 1)
    hard = (1 - p[torch.arange(len(p)), truth]).numpy()
    wrong = (p.argmax(1) != truth).numpy()
    for row in own:
        values = hard if row.by != labels.PREDICTION else (1 - p.max(1).values).numpy()
        last = row.high == 1.0
        inside = (values >= row.low) & ((values < row.high) | last)
        assert row.count == inside.sum()
        if row.count:
            assert row.difficulty == pytest.approx(values[inside].mean(), abs=1e-5)
            assert row.errors == pytest.approx(wrong[inside].mean())
        else:
            assert row.difficulty is None and row.errors is None
    for by in (labels.LABEL, labels.PREDICTION):
        assert sum(row.count for row in own if row.by == by) == len(truth)


def test_no_error_below_one_half(found):
    below = [r for r in found["labels"].rows if r.by == labels.LABEL and r.high <= 0.5]
    assert below and all(row.errors in (None, 0.0) for row in below)


def test_calibration_error_by_hand():
    def row(count, difficulty, errors):
        return labels.LabelRow("x", None, labels.PREDICTION, 0, 1, count, difficulty, errors)

    rows = [row(10, 0.2, 0.5), row(30, 0.6, 0.5), row(0, None, None)]
    assert labels.calibration_error(rows) == pytest.approx((10 * 0.3 + 30 * 0.1) / 40)
    assert labels.pooled(rows) == pytest.approx(0.5) and labels.pooled(rows[2:]) is None


# Spectra


def test_spectra_are_compared_with_the_real_images(found):
    rows = found["spectra"].rows
    teacher = tiny_teacher()

    def radial(images):
        height, width = images.shape[2:]
        log = np.log10(np.abs(np.fft.fft2(images.double().numpy(), norm="ortho")).clip(1e-6))
        log = np.fft.fftshift(log.mean((0, 1)))
        y, x = np.mgrid[:height, :width]
        ring = np.rint(np.hypot(y - height // 2, x - width // 2)).astype(int)
        return np.array([log[ring == r].mean() for r in range(ring.max() + 1)])

    theirs = radial(teacher.normalize(real().pixels(range(20))))
    assert rows[0].images == "real" and rows[0].distance == 0
    assert rows[0].radial == pytest.approx(theirs.tolist(), abs=1e-4)
    work = bench()
    for row in (r for r in rows if r.seed == 1):
        images = work.source(1).sample(8)[0]
        if row.cutoff is not None:
            images = synq_fast.reference.low_pass(images, row.cutoff)
        away = radial(images) - theirs
        assert row.radial == pytest.approx(radial(images).tolist(), abs=1e-4)
        assert row.low == pytest.approx(away[1:3].mean(), abs=1e-4)
        assert row.high == pytest.approx(away[3:5].mean(), abs=1e-4)
        assert row.distance == pytest.approx(np.abs(away[1:5]).mean(), abs=1e-4)
    # The recipe's cut-off of the small runs is 4.
    assert [r.cutoff for r in rows if r.seed == 1] == [None, 2.0, 4.0]


def test_spread():
    values = spread([1.0, 2.0, None, 6.0])
    deviation = statistics.stdev([1.0, 2.0, 6.0])
    assert values == (3.0, 3 - deviation, 3 + deviation, 3)
    assert str(values) == f"3.00 ± {deviation:.2f}" and str(spread([2.0])) == "2.00"
    assert math.isnan(spread([None]).mean)


def test_setting_says_budget_and_data(found):
    setting = found["noise"].setting
    assert setting["steps"] == "2" and setting["labelled images"] == "photographs (20)"
    assert setting["synthetic images"] == "12 per seed, 3 steps" and setting["seeds"] == "0, 1"
    assert json.dumps(setting)
