"""Norms whose channels get ranges alike: their grid, the errors that decide, what is applied."""

import pytest
import torch
from torch import nn

from synq_fast.engine.student import build_student
from synq_fast.errors import RecipeError
from synq_fast.finetune.norm_folds import (
    LEAST,
    WIDENED,
    apply_folds,
    common_grid,
    measure_folds,
    quantized_readers,
    take_ranges,
)
from synq_fast.graph.norm_folding import foldable_norms, with_foldable_norms
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths
from synq_fast.quant.activations import bypassing
from synq_fast.quant.settings import Quantization
from synq_fast.reference import fake_quantize
from tests.transformers import SHAPE, WIDTH, tiny_vit


def ends(seed=0, channels=9):
    """Ranges of channels of very different sizes; some do not hold zero."""
    g = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, channels, generator=g) * torch.logspace(-1, 1.5, channels)
    return pair.amin(0), pair.amax(0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_common_grid_rounds_as_each_channels_own(bits):
    low, high = ends()
    scale, shift, *common = common_grid(low, high, bits)
    assert scale.dtype == shift.dtype == torch.float64
    last = 2**bits - 1
    step = (common[1] - common[0]) / last
    point = -common[0] / step
    assert point == pytest.approx(round(point), abs=1e-9) and 0 <= round(point) <= last
    assert scale.mean().item() == pytest.approx(1)
    for c in range(len(low)):
        ends_of = [min(float(low[c]), 0.0), max(float(high[c]), 0.0)]
        middle, half = sum(ends_of) / 2, WIDENED * (ends_of[1] - ends_of[0]) / 2
        own = 2 * half / last
        own_point = min(max(round((half - middle) / own), 0), last)
        x = torch.linspace(middle - half, middle + half, 101, dtype=torch.float64)
        codes = (x / own + own_point).round().clamp(0, last)
        folded = x / scale[c] - shift[c]
        found = (folded / step + point).round().clamp(0, last)
        # Values between two codes may fall to either.
        apart = ((x / own) % 1 - 0.5).abs() > 1e-6
        assert torch.equal(codes[apart], found[apart])
        # A channel's zero is a level, and stays one.
        zero = float(-shift[c] / step + point)
        assert round(zero) == own_point and zero == pytest.approx(own_point, abs=1e-6)


@pytest.mark.parametrize("bits", [3, 8])
def test_a_symmetric_grid_shifts_nothing(bits):
    low, high = ends()
    scale, shift, *common = common_grid(low, high, bits, symmetric=True)
    assert not shift.any() and common[0] == -common[1]
    largest = torch.maximum(-low.double().clamp_max(0), high.double().clamp_min(0))
    assert (largest / scale <= common[1] * (1 + 1e-9)).all()


def test_channels_that_hardly_vary_are_not_blown_up():
    low, high = torch.zeros(4), torch.tensor([1.0, 1.0, 1e-9, 0.0])
    scale, shift, *_ = common_grid(low, high, 4)
    assert scale.min() >= LEAST / 2 and shift.isfinite().all()
    scale, shift, *common = common_grid(torch.zeros(4), torch.zeros(4), 4)
    assert torch.equal(scale, torch.ones(4).double()) and not shift.any() and common == [0, 0]


def uneven():
    """A transformer some of whose channels are large behind every norm."""
    teacher = tiny_vit()
    g = torch.Generator().manual_seed(3)
    for module in teacher.module.modules():
        if isinstance(module, nn.LayerNorm):
            large = torch.exp(1.5 * torch.randn(WIDTH, generator=g))
            module.weight.data *= large
            module.bias.data += 2 * large
    return teacher.module.requires_grad_(False)


def pair(bits=4, **recipe):
    network = uneven()
    graph = with_foldable_norms(trace(network, torch.randn(2, *SHAPE)), all_of_them=True)
    options = Quantization(**{"placement": "vit", "range": "minmax", **recipe})
    student = build_student(graph, BitWidths(4, bits), options, ()).eval()
    images = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(5))
    return network, graph, student, list(images.split(4))


def rows_of(network, name, images):
    """What a layer of the float network reads, (N, C)."""
    seen = []
    handle = network.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2))
    )
    network(torch.cat(images))
    handle.remove()
    return seen[0]


def quantized_by_row(weight, bits):
    return fake_quantize(weight, weight.amin(1), weight.amax(1), bits, axis=0)


def test_errors_are_those_of_the_layers_outputs_on_what_is_held_out():
    network, graph, student, batches = pair()
    norms, _ = foldable_norms(graph)
    folds = measure_folds(student, norms, batches)
    assert [each.norm for each in folds] == norms
    each = folds[2]
    assert each.norm.readers == ("layers.1.attention.qkv",)
    (name,) = each.norm.readers
    weight = network.get_submodule(name).weight
    fitted, held = rows_of(network, name, batches[:3]), rows_of(network, name, batches[3:])
    plain = fake_quantize(held, fitted.amin(), fitted.amax(), 4)
    difference = plain.double() @ quantized_by_row(weight, 4).double().T - (
        held.double() @ weight.double().T
    )
    assert each.error == pytest.approx(float(difference.square().sum()), rel=1e-4)
    scale, shift, *common = common_grid(fitted.amin(0), fitted.amax(0), 4)
    moved = (held.double() / scale - shift).float()
    turned = (weight.double() * scale).float()
    rounded = fake_quantize(moved, *torch.tensor(common).float(), 4)
    difference = rounded.double() @ quantized_by_row(turned, 4).double().T - (
        moved.double() @ turned.double().T
    )
    assert each.folded_error == pytest.approx(float(difference.square().sum()), rel=1e-3)
    every = torch.cat([fitted, held])
    expected = common_grid(every.amin(0), every.amax(0), 4)
    torch.testing.assert_close(each.scale, expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(each.shift, expected[1], rtol=1e-4, atol=1e-5)
    assert (each.low, each.high) == pytest.approx(expected[2:], rel=1e-5)
    # Sometimes it helps, sometimes not: that is why it is measured.
    assert {each.helps for each in folds} == {True, False}
    assert all(each.helps == (each.folded_error < each.error) for each in folds)


@pytest.mark.parametrize("policy", ["minmax", "ema", "mse", "output"])
@pytest.mark.parametrize("weights", ["minmax", "mse", "learned"])
def test_a_student_stays_as_it_is_while_folds_are_measured(policy, weights):
    _, graph, student, batches = pair(range=policy, weight_range=weights)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    folds = measure_folds(student, foldable_norms(graph)[0], batches[:1])
    assert len(folds) == 5 and all(each.error > 0 < each.folded_error for each in folds)
    after = student.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for module in student.modules():
        assert not module._forward_pre_hooks
        if isinstance(module, ActivationQuantizer):
            assert module.observer is None and not module.bypass


@pytest.mark.parametrize("weights", ["minmax", "mse", "learned"])
def test_folds_are_applied_with_the_ranges_of_weights_and_values(weights):
    network, graph, student, batches = pair(weight_range=weights)
    folds = measure_folds(student, foldable_norms(graph)[0], batches)
    apply_folds(student, folds)
    take_ranges(student, folds)
    for each in folds:
        for layer, quantizer in quantized_readers(student, each.norm):
            own = [quantizer.range_min.item(), quantizer.range_max.item()]
            assert own == pytest.approx([each.low, each.high])
            fresh = build_student(
                graph, BitWidths(4, 4), Quantization(placement="vit", weight_range=weights), ()
            ).get_submodule(each.norm.readers[0])
            fresh.weight.data.copy_(layer.weight)
            fresh.renew_ranges()
            assert torch.equal(fresh.derive(), layer.derive())
            assert layer.gain is None or layer.gain.requires_grad
    x = batches[0]
    with torch.no_grad(), bypassing(student):
        torch.testing.assert_close(student(x), network(x), atol=1e-4, rtol=1e-4)


def test_a_single_image_cannot_be_held_out():
    _, graph, student, batches = pair()
    with pytest.raises(RecipeError, match=r"there is one image alone; raise quantization\.cal"):
        measure_folds(student, foldable_norms(graph)[0], [batches[0][:1]])


def test_norms_that_no_range_follows_are_passed_over():
    _, graph, _, batches = pair()
    norms, _ = foldable_norms(graph)
    kept = build_student(
        graph,
        BitWidths(4, 4),
        Quantization(placement="vit"),
        ("layers.0.fc1",),
    ).eval()
    assert quantized_readers(kept, norms[1]) is None
    assert len(measure_folds(kept, norms, batches)) == 4
