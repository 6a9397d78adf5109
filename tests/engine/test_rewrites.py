"""Folded norms and corrected weights through the engine: chosen, said, saved, loaded, exported."""

import warnings

import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.engine.run import Run
from synq_fast.engine.stages import STAGES, Made
from synq_fast.errors import ModelError, RecipeError
from synq_fast.graph.norm_folding import folded_like
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths
from synq_fast.recipes import load_recipe
from synq_fast.reporting.layers import decibels, measure_layers
from tests.tiny import TINY_OVERRIDES, equal_states, run, tiny_net
from tests.transformers import SHAPE, WIDTH, TinyViT, tiny_vit

FOLDED = {"quantization.rotate": "never", "quantization.fold_norms": "always"}
RIDGE = {"quantization.ridge": 0.1}
BALANCED = {"quantization.weight_rounding": "balanced", "quantization.weight_range": "learned"}
FEW = {"blocks.images": 8, "blocks.steps": 2, "blocks.batch_size": 4}


def small(teacher=None, recipe="synq-fast-vit-8bit", **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no effect")
        return run(teacher or tiny_vit(), recipe=recipe, **options)


def uneven(layers: int = 2) -> Teacher:
    """Some channels are large behind every norm."""
    teacher = tiny_vit(layers=layers)
    g = torch.Generator().manual_seed(3)
    for module in teacher.module.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data *= torch.exp(1.5 * torch.randn(WIDTH, generator=g))
    return teacher


@pytest.mark.parametrize(
    "overrides", [FOLDED, RIDGE, BALANCED, {**FOLDED, **RIDGE, **BALANCED}], ids=str
)
def test_the_model_is_saved_and_loaded(tmp_path, overrides):
    teacher = uneven()
    before = {n: v.clone() for n, v in teacher.module.state_dict().items()}
    overrides = {**overrides, "quantization.weight_scheme": "symmetric"}
    result = small(teacher, overrides=overrides, bits="w8a8", output=tmp_path)
    images = torch.randn(6, *SHAPE)
    loaded = synq_fast.load(tmp_path, model=TinyViT())
    assert equal_states(loaded, result.model)
    assert torch.equal(loaded(images), result.model(images))
    difference = (result.model(images) - teacher.module(images)).square().mean()
    # 8 bits leave about 0.01 of this small network, by the processor a little more or less.
    assert difference < 0.03 * teacher.module(images).var()
    assert all(torch.equal(v, before[n]) for n, v in teacher.module.state_dict().items())
    folds = [m.fold for m in result.model.modules() if hasattr(m, "fold")]
    assert len(folds) == (5 if "quantization.fold_norms" in overrides else 0)
    assert all((fold[0] != 1).any() for fold in folds)
    frozen = synq_fast.load(tmp_path, model=TinyViT(), execution="frozen")
    scale = teacher.module(images).abs().max()
    assert (frozen(images) - result.model(images)).abs().max() < 0.05 * scale


def test_widths_are_found_before_norms_are_folded():
    pytest.importorskip("scipy")
    result = small(uneven(), overrides={**FOLDED, **RIDGE, **BALANCED}, bits="auto:5.0")
    assert result.recipe.quantization.fold_norms == "always"
    assert any((m.fold[0] != 1).any() for m in result.model.modules() if hasattr(m, "fold"))


def bench(teacher, bits="w4a4", said=None, **overrides) -> tuple[Run, Made]:
    """A run with its images, before calibration."""
    recipe = load_recipe("synq-fast-vit-8bit", {**TINY_OVERRIDES, **overrides})
    made = Run(teacher, recipe, BitWidths.parse(bits), torch.device("cpu"))
    if said is not None:
        made.reporter.line = said.append
    return made, STAGES["synthesis"](made, Made(made.build_student()))


@pytest.mark.filterwarnings("ignore:.* has no effect")
def test_folds_that_help_are_taken_and_all_is_said():
    said: list[str] = []
    auto = {**FOLDED, "quantization.fold_norms": "auto"}
    work, made = bench(uneven(), said=said, **auto)
    student = STAGES["calibration"](work, made).student
    folded = {
        name
        for name, module in student.named_modules()
        if hasattr(module, "fold") and (module.fold[0] != 1).any()
    }
    told = {line.split(":")[0].strip() for line in said if ": folded, error" in line}
    left = {line.split(":")[0].strip() for line in said if ": left as it is" in line}
    assert folded == told and folded and len(told | left) == 5 and not told & left
    assert f"fold_norms: {len(folded)} of 5 LayerNorms folded" in said
    # Each fell where it is said to fall.
    assert all("-" in line.split("reads it")[1] for line in said if ": folded, error" in line)


@pytest.mark.filterwarnings("ignore:.* has no effect")
def test_values_of_both_networks_are_compared_in_the_same_channels():
    work, made = bench(uneven(), **FOLDED)
    student = STAGES["calibration"](work, made).student
    like = folded_like(work.graph, student)
    images = torch.randn(4, *SHAPE)
    torch.testing.assert_close(like(images), work.graph(images), atol=1e-4, rtol=1e-4)
    for row in measure_layers(student, images, like).weights:
        own = like.get_submodule(row.name).weight
        quantized = student.get_submodule(row.name).derive()
        assert row.noise_db == pytest.approx(decibels(own, own - quantized), rel=1e-4)
        assert row.noise_db > 10
    unlike = {row.name: row.noise_db for row in measure_layers(student, images, work.graph).weights}
    assert unlike["layers.0.fc1"] < 10


@pytest.mark.parametrize("stage", ["blocks", "finetune"])
def test_training_compares_folded_values(stage):
    """At 8 bits the first distance is small, if both networks are folded."""
    overrides = {**FEW, **FOLDED, "quantization.range": "minmax", "blocks.mix": 1.0}
    if stage == "finetune":
        overrides |= {"stages": ["synthesis", "calibration", "finetune"], "finetune.steps": 2}
        overrides |= {"finetune.feature_distance.weight": 1.0}
    result = small(uneven(), "synq-fast-vit", overrides=overrides, bits="w8a8")
    plain = small(
        uneven(),
        "synq-fast-vit",
        overrides={**overrides, "quantization.fold_norms": "never"},
        bits="w8a8",
    )

    def first(result):
        records = [r for r in result.history if r["stage"] == stage]
        return max(v for r in records for k, v in r.items() if k in ("local", "feature_distance"))

    assert 0 < first(result) < 20 * first(plain)


def test_a_network_that_cannot_be_folded_is_left_alone_or_refused(capsys):
    result = small(tiny_net(), "synq-digits", overrides={"quantization.fold_norms": "auto"})
    assert result.recipe.quantization.fold_norms == "never"
    with pytest.raises(ModelError, match=r"not every LayerNorm can be folded.*there is none"):
        small(tiny_net(), "synq-digits", overrides={"quantization.fold_norms": "always"})


def test_rotated_networks_have_no_norms_to_fold():
    turned = {"quantization.rotate": "always"}
    result = small(overrides={**turned, "quantization.fold_norms": "auto"})
    assert result.recipe.quantization.fold_norms == "never"
    with pytest.raises(RecipeError, match=r"rotated network has RMSNorms.*set one of"):
        small(overrides={**turned, "quantization.fold_norms": "always"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("quantization.fold_norms", "sometimes"), ("quantization.ridge", -1.0)],
)
def test_values_that_cannot_be_meant(key, value):
    with pytest.raises(RecipeError, match=key):
        load_recipe("synq-fast-vit", {key: value})


def test_a_folded_model_is_exported(tmp_path):
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    overrides = {**FOLDED, **RIDGE, "quantization.placement": "integer"}
    small(uneven(1), overrides=overrides, bits="w8a8", output=tmp_path / "run")
    report = synq_fast.export(
        tmp_path / "run", tmp_path / "net.onnx", architecture=TinyViT(1), compare=False
    )
    assert [check.passed for check in report.checks] == [True, True]
    path = tmp_path / "net.safetensors"
    synq_fast.export(tmp_path / "run", path, "packed", architecture=TinyViT(1))
    images = torch.randn(4, *SHAPE)
    packed = synq_fast.load(path, model=TinyViT(1))
    whole = synq_fast.load(tmp_path / "run", model=TinyViT(1))
    assert (packed(images) - whole(images)).abs().max() < 0.05 * whole(images).abs().max()
