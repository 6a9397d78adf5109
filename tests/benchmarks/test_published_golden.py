"""The pieces of the rebuilt published step give the published code's own values."""

from __future__ import annotations

import torch

from benchmarks.baselines.published_cam import class_activation_map
from benchmarks.baselines.published_losses import (
    difficulty,
    distillation,
    low_pass_full,
    low_pass_half,
    low_pass_mask,
    masked_cross_entropy,
)
from benchmarks.baselines.published_quantizer import QuantAct, fake_quantize
from tests.golden_cases import golden_cases
from tests.tolerances import assert_close


def test_fake_quantize_is_bit_exact(golden):
    for name, case in golden_cases(golden("fake_quantize")):
        shape = (-1,) + (1,) * (case["x"].dim() - 1)
        low, high = case["min"].view(shape), case["max"].view(shape)
        quantized = fake_quantize(case["x"], low, high, case["bits"])
        assert torch.equal(quantized, case["y"]), name


def test_range_tracker_compounds_as_published(golden):
    arrays = golden("ema_range")
    tracker = QuantAct(bits=4)
    batches = zip(arrays["batch_min"], arrays["batch_max"], strict=True)
    for index, (low, high) in enumerate(batches):
        tracker.track(torch.tensor(low), torch.tensor(high), float(arrays["beta"]))
        assert_close(tracker.range_min.item(), float(arrays["ref_min"][index]), "running_range")
        assert_close(tracker.range_max.item(), float(arrays["ref_max"][index]), "running_range")


def test_low_pass(golden):
    for _, case in golden_cases(golden("low_pass")):
        x = case["x"]
        mask = low_pass_mask(*x.shape[-2:], case["d0"], x)
        assert_close(low_pass_full(x, mask), case["y"], "low_pass")
        assert_close(low_pass_half(x, mask), case["y"], "low_pass")


def test_losses_on_logits(golden):
    for _, case in golden_cases(golden("distillation")):
        student, labels = case["student"].requires_grad_(), case["labels"]
        hard = difficulty(case["teacher"], labels)
        assert_close(hard, case["difficulty"], "probability")
        easy = hard < case["tau"]
        assert torch.equal(easy, case["mask"])

        kl = distillation(student, case["teacher"], case["temperature"], case["alpha"])
        factor = case["alpha"] * case["temperature"] ** 2
        assert_close(kl, case["kl"], "kl_per_factor", factor=factor)
        (gradient,) = torch.autograd.grad(kl, student)
        assert_close(gradient, case["grad_kl"], "logit_gradient")

        ce = masked_cross_entropy(student, labels, easy)
        assert_close(ce, case["ce"], "cross_entropy")
        (gradient,) = torch.autograd.grad(ce, student)
        assert_close(gradient, case["grad_ce"], "logit_gradient")


def test_class_activation_map(golden):
    for _, case in golden_cases(golden("grad_cam")):
        if case["kind"] == "grad_cam":
            size = tuple(case["size"].tolist())
            found = class_activation_map(case["activations"], case["gradients"], size)
            assert_close(found, case["map"], "cam_map")
