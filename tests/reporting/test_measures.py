"""What a page's numbers are, beside independent formulas in float64."""

import copy
import math

import numpy as np
import pytest
import torch

from synq_fast.engine.student import build_student
from synq_fast.quant import BitWidths
from synq_fast.reporting.accuracy import accuracies, standard_error
from synq_fast.reporting.images import difficulty, spectrum
from synq_fast.reporting.layers import decibels, measure_layers, sensitivities
from synq_fast.reporting.maps import MAP_KINDS, class_maps, compare_maps, cosine
from tests.tiny import tiny_images, tiny_pair, tiny_recipe


def test_standard_error_is_that_of_many_drawn_sets():
    drawn = np.random.default_rng(0).binomial(400, 0.9, 20000) / 4
    assert standard_error(90.0, 400) == pytest.approx(drawn.std(), rel=0.02)
    assert standard_error(100.0, 7) == 0 and standard_error(50.0, 1) == 50


def test_accuracies_in_the_order_of_the_stages():
    metrics = {
        "seconds": {"calibration": 1.0},
        "best seen": {"top1": 75.0, "step": 40},
        "quantized": {"top1": 50.0, "top5": 75.0, "count": 4, "loss": 1.5},
        "float32": {"top1": 100.0, "top5": 100.0, "count": 4, "loss": 0.5},
    }
    found = accuracies(metrics)
    assert [(a.stage, a.top1, a.count, a.loss, a.step) for a in found] == [
        ("float", 100.0, 4, 0.5, None),
        ("last step", 50.0, 4, 1.5, None),
        ("best seen", 75.0, 4, None, 40),
    ]
    assert [a.error for a in found] == [0, 25, pytest.approx(25 * math.sqrt(0.75))]
    assert accuracies({}) == () and accuracies({"best seen": {"top1": 75.0, "step": 40}}) == ()


def test_spectrum_of_a_wave():
    height, width, amplitude = 12, 16, 0.5
    x = torch.arange(width).double()
    wave = amplitude * torch.cos(2 * math.pi * 3 * x / width)
    found = spectrum("waves", wave.expand(2, 3, height, width))
    # A cosine has half of its amplitude at each of two frequencies.
    expected = math.log10(amplitude / 2 * math.sqrt(height * width))
    peak = found.magnitude[height // 2, [width // 2 - 3, width // 2 + 3]]
    torch.testing.assert_close(peak, torch.full((2,), expected))
    assert int((found.magnitude > -5).sum()) == 2
    assert found.images == 2 and found.frequency.tolist() == list(range(11))
    assert int(found.radial.argmax()) == 3


def test_spectrum_beside_numpy():
    images = tiny_images(5)
    shifted = np.fft.fftshift(np.fft.fft2(images.double().numpy()), axes=(-2, -1)) / 8
    expected = np.log10(np.abs(shifted)).mean((0, 1))
    found = spectrum("noise", images)
    np.testing.assert_allclose(found.magnitude.numpy(), expected, atol=1e-5)
    assert found.radial[0] == found.magnitude[4, 4]
    ring = [
        expected[y, x] for y in range(8) for x in range(8) if 1.5 <= np.hypot(y - 4, x - 4) < 2.5
    ]
    assert float(found.radial[2]) == pytest.approx(np.mean(ring), abs=1e-5)


def test_difficulty_is_what_the_label_does_not_get():
    logits, labels = 3 * torch.randn(9, 4), torch.randint(4, (9,))
    p = np.exp(logits.double().numpy())
    expected = 1 - p[range(9), labels] / p.sum(1)
    np.testing.assert_allclose(difficulty(logits, labels).numpy(), expected, rtol=1e-5)


def test_cosine_of_maps():
    a, b = torch.rand(4, 5, 6), torch.rand(4, 5, 6)
    b[0], b[1] = 3 * a[0], 0
    found = cosine(a, b)
    assert found[0] == pytest.approx(1.0) and found[1].isnan()
    u, v = a[2].flatten().double().numpy(), b[2].flatten().double().numpy()
    assert float(found[2]) == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


@pytest.fixture(scope="module")
def pair():
    """Teacher, student, structure and images."""
    torch.manual_seed(0)
    teacher, student, structure = tiny_pair(tiny_recipe(), BitWidths(3, 4))
    return teacher.requires_grad_(False), student.requires_grad_(False), structure, tiny_images(40)


def test_maps_are_those_of_the_class_that_the_float_network_names(pair):
    teacher, student, structure, images = pair
    node = structure.maps[-1]
    with torch.no_grad():
        logits = teacher(images), student(images)
    maps = compare_maps(teacher, student, node, images, images, logits)
    assert torch.equal(maps.labels, logits[0].argmax(1))
    assert torch.equal(maps.same, logits[1].argmax(1) == maps.labels)
    assert torch.equal(maps.similarity, cosine(maps.float_maps, maps.quantized_maps))
    same = compare_maps(teacher, teacher, node, images, images, (logits[0], logits[0]))
    kept = same.similarity[~same.similarity.isnan()]
    assert len(kept) > 20 and torch.allclose(kept, torch.ones_like(kept))
    assert float(maps.similarity.nan_to_num(1).min()) < 0.999


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_a_map_is_what_its_kind_says(pair, kind):
    teacher, _, structure, images = pair
    images, classes = images[:3], torch.tensor([0, 1, 2])
    found = class_maps(teacher, structure.maps[-1], images, classes, kind)
    seen = {}
    layer = teacher.get_submodule("conv2")

    def hook(module, args, output):
        seen["value"] = output.clone().detach().requires_grad_()
        return seen["value"]

    handle = layer.register_forward_hook(hook)
    score = teacher(images)[range(3), classes].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, seen["value"])
    weights = gradient.mean((2, 3), keepdim=True).clamp_min(1e-10)
    if kind == "grad_cam_plus_plus":
        total = seen["value"].sum((2, 3), keepdim=True)
        alpha = 1 / (2 + total * gradient)
        weights = (alpha * gradient.relu()).sum((2, 3), keepdim=True)
    coarse = (weights * seen["value"]).sum(1).relu().detach()
    low, high = (f(coarse.flatten(1), 1).view(3, 1, 1) for f in (torch.amin, torch.amax))
    torch.testing.assert_close(found, (coarse - low) / (high - low + 1e-10), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        ([10.0, 0.0], [0.0, 1.0], 20.0),
        ([2.0], [2.0], 0.0),
        ([1.0], [0.0], math.inf),
        ([0.0], [1.0], -math.inf),
        ([0.0], [0.0], math.nan),
    ],
)
def test_decibels(signal, noise, expected):
    found = decibels(torch.tensor(signal), torch.tensor(noise))
    assert found == pytest.approx(expected, nan_ok=True)


def test_every_quantizer_has_a_row(pair):
    teacher, student, _, images = pair
    layers = measure_layers(student, images, teacher)
    weights = {row.name: row for row in layers.weights}
    assert list(weights) == ["conv1", "conv2", "fc"] and layers.images == 40
    assert layers.weights[0].inputs == ()
    (read,) = weights["conv2"].inputs
    activations = {row.name: row for row in layers.activations}
    assert "conv2" in activations[read].readers
    for name, row in weights.items():
        float_weight = teacher.get_submodule(name).weight.double().numpy()
        quantized = student.get_submodule(name).quantized_weight().double().numpy()
        noise = ((float_weight - quantized) ** 2).sum()
        assert row.noise_db == pytest.approx(10 * np.log10((float_weight**2).sum() / noise))
        assert (row.bits, row.parameters) == (3, float_weight.size)
        assert row.size == math.ceil(float_weight.size * 3 / 8) + 5 * len(float_weight)
        assert float(row.histogram.shares.sum()) == pytest.approx(1)
        channels = quantized.reshape(len(quantized), -1)
        most = max(len(np.unique(channel)) for channel in channels)
        assert most <= int((row.histogram.taken > 0).sum()) <= 8
        assert row.histogram.levels.tolist() == list(range(-4, 4))
    rest = sum(p.numel() for n, p in student.named_parameters() if n.split(".")[0] not in weights)
    assert layers.float_bytes == 4 * (rest + student.get_submodule("fc").bias.numel())


def test_outputs_beside_those_of_the_float_network(pair):
    teacher, student, _, images = pair
    seen = {}
    for title, network in (("float", teacher), ("quantized", student)):
        handle = network.get_submodule("conv2").register_forward_hook(
            lambda m, x, y, title=title: seen.__setitem__(title, y.double().numpy().copy())
        )
        with torch.no_grad():
            network(images)
        handle.remove()
    noise = ((seen["float"] - seen["quantized"]) ** 2).sum()
    expected = 10 * np.log10((seen["float"] ** 2).sum() / noise)
    row = next(r for r in measure_layers(student, images, teacher).weights if r.name == "conv2")
    assert row.output_db == pytest.approx(expected, rel=1e-5)


def test_what_an_activation_quantizer_clips_and_loses(pair):
    _, student, _, images = pair
    row = measure_layers(student, images).activations[0]
    quantizer, seen = student.get_submodule(row.name), {}
    handle = quantizer.register_forward_hook(lambda m, x, y: seen.update(x=x[0], y=y))
    with torch.no_grad():
        student(images)
    handle.remove()
    x, y = (seen[n].double().numpy() for n in "xy")
    scale, zero = (float(v) for v in quantizer.grid()[:2])
    low, high = (-8 + zero) / scale, (7 + zero) / scale
    assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))
    outside = (x < low - 0.5 / scale) | (x > high + 0.5 / scale)
    assert row.clipped == pytest.approx(outside.mean()) and outside.any()
    assert row.noise_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    levels, counts = np.unique(y.round(6), return_counts=True)
    at = [int(np.abs(row.histogram.levels.numpy() - level).argmin()) for level in levels]
    np.testing.assert_allclose(row.histogram.taken.numpy()[at], counts / y.size, atol=1e-6)


def test_sensitivity_is_the_divergence_of_one_quantizer_alone(pair):
    teacher, _, _, images = pair
    plain = build_student(teacher, BitWidths(3, 4), tiny_recipe().quantization).eval()
    found = sensitivities(teacher, plain, images)
    assert set(found) == {n for n, m in plain.named_modules() if hasattr(m, "grid")}
    single = copy.deepcopy(teacher)
    with torch.no_grad():
        weight = plain.get_submodule("conv2").quantized_weight()
        single.get_submodule("conv2").weight.copy_(weight)
        p, q = (torch.log_softmax(n(images).double(), 1) for n in (teacher, single))
    expected = float((p.exp() * (p - q)).sum(1).mean())
    assert found["conv2"] == pytest.approx(expected, rel=1e-4) and expected > 1e-6


def test_a_network_changes_nothing_by_being_looked_at(pair):
    _, student, _, images = pair
    before = {k: v.clone() for k, v in student.state_dict().items()}
    measure_layers(student, images)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert not any(m._forward_hooks for m in student.modules())
