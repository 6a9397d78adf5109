"""Widths of single layers, and quantizers that say their grid."""

import pytest
import torch
from torch import nn

from synq_fast import ops
from synq_fast.engine.student import build_student
from synq_fast.errors import RecipeError
from synq_fast.quant import ActivationQuantizer, BitWidths, trace
from synq_fast.quant.layers import WeightQuantized, quantize_layers
from synq_fast.quant.settings import Quantization
from synq_fast.recipes import load_recipe
from tests.tiny import equal_states, run, tiny_images, tiny_net


def widths(**recipe) -> dict[str, int]:
    graph = trace(tiny_net(), tiny_images(2))
    student = build_student(graph, BitWidths(4, 3), Quantization(**recipe))
    found = {}
    for name, module in student.named_modules():
        if isinstance(module, WeightQuantized):
            found[name] = module.weight_bits
        elif isinstance(module, ActivationQuantizer):
            found[name] = module.bits
    return found


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, {"conv1": 4, "conv2": 4, "fc": 4, "quantize_relu": 3, "quantize_relu_1": 3}),
        # What fc reads is an average of the last quantizer's values.
        (
            {"end_bits": 8},
            {"conv1": 8, "conv2": 4, "fc": 8, "quantize_relu": 3, "quantize_relu_1": 8},
        ),
        (
            {"layer_bits": ("conv2=w2a5",)},
            {"conv1": 4, "conv2": 2, "fc": 4, "quantize_relu": 5, "quantize_relu_1": 3},
        ),
        (
            {"end_bits": 8, "layer_bits": ("fc = w6a7",)},
            {"conv1": 8, "conv2": 4, "fc": 6, "quantize_relu": 3, "quantize_relu_1": 7},
        ),
    ],
)
def test_policy(recipe, expected):
    assert widths(**recipe) == expected


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"layer_bits": ("conv3=w8a8",)}, r'no quantized layer is named "conv3"; did you mean'),
        ({"layer_bits": ("fc",)}, "takes .LAYER=wXaY."),
        ({"layer_bits": ("fc=8",)}, "bits must look like"),
    ],
)
def test_policies_that_cannot_be_meant(recipe, message):
    with pytest.raises(RecipeError, match=message):
        widths(**recipe)


def test_ends_have_the_bounds_of_widths():
    with pytest.raises(RecipeError, match=r"quantization\.end_bits must be 0 or 2 to 8, got 1"):
        load_recipe("synq-digits", {"quantization.end_bits": 1})


def test_a_run_with_other_ends_is_saved_and_loaded(tmp_path):
    import synq_fast

    overrides = {"quantization.end_bits": 8, "quantization.weight_range": "mse"}
    result = run(overrides=overrides, bits="w3a3")
    result.save(tmp_path / "model.safetensors")
    loaded = synq_fast.load(tmp_path / "model.safetensors", model=tiny_net(seed=4))
    assert equal_states(loaded, result.model)
    assert torch.equal(loaded(tiny_images(3)), result.model(tiny_images(3)))


@pytest.mark.parametrize("bits", [2, 4])
def test_clipped_weights_have_less_error(bits):
    net = nn.Linear(64, 5)
    with torch.no_grad():
        net.weight[0, 0] = 9.0
        net.weight[1] = 0.25
    weight = net.weight.detach().clone()
    errors = []
    for policy in ("minmax", "mse"):
        net.__class__ = nn.Linear
        assert quantize_layers({net: bits}, policy) == 1
        errors.append((net.quantized_weight() - weight).abs().pow(2.4).sum(1))
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert errors[1][2:].sum() < 0.95 * errors[0][2:].sum()


@pytest.mark.parametrize("policy", ["minmax", "mse"])
def test_grid_of_weights_is_that_of_their_values(policy):
    net = nn.Conv2d(3, 4, 3)
    quantize_layers({net: 3}, policy)
    check(net.grid(), net.quantized_weight().detach())


@pytest.mark.parametrize("learn", [False, True])
def test_grid_of_activations_is_that_of_their_values(learn):
    quantizer = ActivationQuantizer(4, learn=learn)
    quantizer.range_min.fill_(-0.4)
    quantizer.range_max.fill_(1.3)
    x = torch.randn(50)
    check(quantizer.grid(), quantizer(x).detach())
    _, scale, zero_point = ops.quantize_codes(x, torch.tensor(-0.4), torch.tensor(1.3), 4)
    assert torch.equal(quantizer.grid().scale, scale)
    assert torch.equal(quantizer.grid().zero_point, zero_point)


def check(grid, values) -> None:
    shape = (-1,) + (1,) * (values.dim() - 1) if grid.scale.dim() else ()
    scale, zero_point = grid.scale.reshape(shape), grid.zero_point.reshape(shape)
    codes = (values * scale - zero_point).round()
    assert codes.min() >= grid.low and codes.max() <= grid.high
    assert torch.equal((codes + zero_point) / scale, values)
