import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.bank import batches as batches_module
from synq_fast.data import load_dataset
from synq_fast.engine import run as run_module
from synq_fast.errors import (
    DataError,
    ModelError,
    NonFiniteLossError,
    RecipeError,
    RunFolderError,
    SynqFastError,
)
from synq_fast.finetune import training as training_module
from synq_fast.finetune.training import Training
from synq_fast.quant import ActivationQuantizer
from synq_fast.synthesis.synthesizer import Synthesizer
from tests.tiny import (
    CLASSES,
    SHAPE,
    TINY_OVERRIDES,
    equal_states,
    labelled,
    run,
    tiny_images,
    tiny_labels,
    tiny_net,
)


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 2)


def test_module_end_to_end():
    net = tiny_net()
    result = run(net, bits="w3a5")
    assert not result.model.training
    assert [record["step"] for record in result.history] == [2, 4, 6]
    assert all(set(r) >= {"step", "learning_rate", "kl", "ce", "cam"} for r in result.history)
    quantizers = [m for m in result.model.modules() if isinstance(m, ActivationQuantizer)]
    assert [q.bits for q in quantizers] == [5, 5]
    assert all(q.range_max > q.range_min and q.observer is None for q in quantizers)
    assert len(result.model.conv1.quantized_weight()[0].unique()) <= 8
    assert not torch.equal(result.model.conv1.weight, net.conv1.weight)
    assert not any(p.requires_grad for p in result.model.parameters())
    assert set(result.metrics["seconds"]) == {"synthesis", "calibration", "fine-tuning"}
    images = tiny_images(16)
    with torch.no_grad():
        logits = net(images)
        errors = [
            (run(net, bits=bits, overrides={"finetune.steps": 0}).model(images) - logits).norm()
            for bits in ("w8a8", "w4a4", "w2a2")
        ]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.05 * logits.norm()


def test_embedded_digits_end_to_end(tmp_path):
    overrides = {"synthesis.batch_size": 12, "finetune.steps": 2, "finetune.learning_rate": 1e-5}
    result = run(
        "digits-resnet20", bits="w8a8", overrides=overrides, evaluation="digits", output=tmp_path
    )
    metrics = result.metrics
    assert metrics["float32"]["count"] == metrics["quantized"]["count"] == 360
    assert metrics["float32"]["top1"] > 95
    assert metrics["quantized"]["top1"] > 80
    assert "best seen" not in metrics
    loaded = synq_fast.load(tmp_path)
    images, digits = torch.randn(5, 1, 16, 16), load_dataset("digits", result.teacher)
    assert torch.equal(loaded(images), result.model(images))
    assert synq_fast.evaluate(result.model, digits).top1 == metrics["quantized"]["top1"]


def test_users_module_is_not_touched():
    net = tiny_net().train()
    net.bn1.eval()
    net.fc.weight.requires_grad_(False)
    before = copy.deepcopy(net)
    result = run(net)
    assert equal_states(net, before)
    for module, old in zip(net.modules(), before.modules(), strict=True):
        assert type(module) is type(old) and module.training == old.training
        assert getattr(module, "inplace", None) == getattr(old, "inplace", None)
    for parameter, old in zip(net.parameters(), before.parameters(), strict=True):
        assert parameter.requires_grad == old.requires_grad and parameter.grad is None
    with torch.no_grad():
        result.model.conv1.weight.zero_()
    assert equal_states(net, before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_by_the_caller(context):
    with context():
        result = run()
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert equal_states(result.model, run().model)


def test_default_device_and_explicit_one():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(run().model.parameters()).device.type == device
    assert next(run(device="cpu").model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_device_that_is_not_there(device):
    with pytest.raises(SynqFastError, match=f'cannot work on device "{device}"'):
        run(device=device)


def test_same_seed_same_model_other_seed_other_model():
    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    again = run()
    assert equal_states(first.model, again.model)
    assert first.history == again.history
    assert not equal_states(first.model, run(seed=1).model)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_goes_to_standard_error_or_nowhere(capfd, progress):
    synq_fast.quantize(
        tiny_net(), "synq-digits", input_shape=SHAPE, overrides=TINY_OVERRIDES, progress=progress,
        evaluation=labelled(),
    )  # fmt: skip
    captured = capfd.readouterr()
    assert captured.out == ""
    if progress:
        assert "synthesis: 6/6" in captured.err and "fine-tuning: 6/6" in captured.err
        assert "quantized: top-1" in captured.err
    else:
        assert captured.err == ""


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"bits": "w9a4"}, RecipeError, "weight bits"),
        ({"bits": 4}, RecipeError, "bits must look like"),
        ({"recipe": "nothing"}, RecipeError, 'no recipe "nothing"'),
        ({"overrides": {"finetune.stepz": 1}}, RecipeError, "did you mean"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.ReLU())}, ModelError,
         "no convolution"),
        ({"teacher": "resnet999"}, ModelError, "resnet"),
        ({"teacher": tiny_net().double()}, ModelError, r"torch\.float64.*\.float\(\)"),
        ({"evaluation": Path("missing-set")}, DataError, "missing-set"),
    ],
)  # fmt: skip
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        run(**options)


def test_teacher_with_nan():
    net = tiny_net()
    with torch.no_grad():
        net.fc.weight[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match='"classes" is nan'):
        run(net)


# Evaluation


def test_metrics_of_an_evaluation_set_and_no_influence(tmp_path):
    plain = run()
    measured = run(evaluation=labelled(), evaluate_every=2, output=tmp_path / "run")
    assert equal_states(plain.model, measured.model)
    assert plain.history == measured.history
    assert set(plain.metrics) == {"coverage", "seconds", "kernels"}
    metrics = measured.metrics
    assert {"float32", "post-training", "quantized"} <= set(metrics)
    result = synq_fast.evaluate(measured.model, labelled())
    assert metrics["quantized"]["top1"] == result.top1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    # What a set is measured on does not change what it measures.
    before = {k: v.clone() for k, v in measured.model.state_dict().items()}
    synq_fast.evaluate(measured.model, [(100 * tiny_images(4), tiny_labels(4))])
    assert all(torch.equal(v, before[k]) for k, v in measured.model.state_dict().items())


@pytest.mark.parametrize(("every", "expected"), [(0, []), (2, [2, 4, 6]), (3, [4, 6]), (5, [6])])
def test_evaluation_during_training_comes_when_it_is_due(monkeypatch, every, expected):
    steps, seen = [0], []
    measure, prepare = run_module.Run.measure, Training.prepare

    def counted(self, step):
        steps[0] += 1
        return prepare(self, step)

    def noted(self, name, model):
        if name == "latest":
            seen.append(steps[0])
        return measure(self, name, model)

    monkeypatch.setattr(Training, "prepare", counted)
    monkeypatch.setattr(run_module.Run, "measure", noted)
    result = run(evaluation=labelled(), evaluate_every=every)
    assert [record["step"] for record in result.history] == [2, 4, 6]
    assert seen == expected


def test_best_seen_is_never_below_the_last(monkeypatch):
    tops = iter([90.0, 50.0, 10.0, 20.0, 15.0, 30.0])  # float32, post-training, 3 x latest, last
    original = run_module.evaluate

    def fixed(*args, **options):
        return replace(original(*args, **options), top1=next(tops))

    monkeypatch.setattr(run_module, "evaluate", fixed)
    metrics = run(evaluation=labelled(), evaluate_every=2).metrics
    assert metrics["quantized"]["top1"] == 30
    assert metrics["best seen"] == {"top1": 30, "step": 6}


# The bank


def test_bank_is_shared_between_bit_widths(tmp_path, monkeypatch):
    bank = tmp_path / "bank"
    images = synq_fast.synthesize(
        tiny_net(), bank, "synq-digits", SHAPE, overrides=TINY_OVERRIDES, progress=False
    )
    assert images.images.shape == (12, *SHAPE)
    assert images.labels.bincount(minlength=CLASSES).tolist() == [4, 4, 4]
    alone = run(bits="w2a2")
    monkeypatch.delattr(Synthesizer, "batch")  # nothing is synthesized again
    shared = run(bits="w2a2", bank=bank, output=tmp_path / "run")
    assert equal_states(alone.model, shared.model)
    assert not (tmp_path / "run" / "bank").exists()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"overrides": {"synthesis.steps": 4}}, {"teacher": tiny_net(seed=9)}]
)
def test_bank_of_another_run_is_refused(tmp_path, change):
    run(bank=tmp_path)
    with pytest.raises(RunFolderError, match="another teacher, seed or synthesis recipe"):
        run(bank=tmp_path, **change)


def test_bank_does_not_depend_on_the_rest_of_the_recipe(tmp_path):
    run(bank=tmp_path)
    run(bank=tmp_path, bits="w2a8", overrides={"finetune.steps": 1, "filter.kind": "none"})


# Parts of the recipe


def test_leaf_modules_stay_in_floating_point():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.conv(x) if bool(x.abs().sum() >= 0) else x

    class WithLeaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tiny_net()
            self.odd = Odd()
            self.conv, self.bn = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
            self.fc = nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.body(x) + self.fc(self.odd(self.bn(self.conv(x)).relu()).mean((2, 3)))

    result = run(WithLeaf(), overrides={"quantization.leaf_modules": ["Odd"]}, bits="w2a2")
    assert type(result.model.odd.conv) is nn.Conv2d
    assert len(result.model.conv.quantized_weight()[0].unique()) <= 4


def test_without_fine_tuning_it_is_post_training_quantization():
    result = run(overrides={"finetune.steps": 0}, evaluation=labelled())
    assert result.history == []
    assert result.metrics["post-training"] == result.metrics["quantized"]
    assert torch.equal(result.model.conv1.weight, tiny_net().conv1.weight)


def test_calibration_sees_whole_filtered_images(monkeypatch):
    scales = []
    original = batches_module.random_crops

    def noted(count, scale, generator):
        scales.append(scale)
        return original(count, scale, generator)

    monkeypatch.setattr(batches_module, "random_crops", noted)
    run()
    assert scales[:2] == [(1.0, 1.0)] * 2
    assert set(scales[2:]) == {(0.5, 1.0)} and len(scales) == 2 + 6
