import copy

import numpy as np
import pytest
import torch
from torch import nn

from synq_fast.deployment.freezing import freeze, frozen_layers
from synq_fast.deployment.frozen import FrozenConv2d, FrozenLinear, FrozenQuantizer
from synq_fast.errors import ModelError
from synq_fast.graph import called_module
from synq_fast.models import Teacher
from synq_fast.quant.fusion import FrozenNorm
from tests.deployment.conftest import noise, quantized, residual, student
from tests.tiny import randomize_statistics


def teacher_of(module, shape=(3, 8, 8), classes=4):
    return Teacher(module.eval(), "net", shape, (0.0,) * shape[0], (1.0,) * shape[0], classes)


class Small(nn.Module):
    """A convolution with a norm, one without, one that is called twice, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.twice(x))
        x = torch.relu(self.twice(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = Small()
    randomize_statistics(net)
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([1.0, -0.5, 0.0, 2.0, -1.5, 0.1]))
    return teacher_of(net)


@pytest.mark.parametrize("bits", ["w2a8", "w4a4", "w7a3", "w8a8"])
def test_weights_are_the_quantized_ones_with_the_norm_in_them(small, bits):
    network = quantized(small, bits)
    layers = frozen_layers(freeze(network))
    factor, shift = FrozenNorm(network.get_submodule("norm")).derive()
    first = network.get_submodule("first")
    wanted = first.quantized_weight().double() * factor.double()[:, None, None, None]
    found = layers["first"]
    # Of a channel whose norm multiplies by zero nothing is left.
    torch.testing.assert_close(found.weight().double(), wanted, rtol=1e-6, atol=1e-9)
    codes = found.codes()
    assert codes.dtype == torch.int8 and int(codes.abs().max()) <= 127
    assert (found.scale > 0).all()
    bias = (first.bias * factor + shift).double()
    step = (found.input_scale * found.scale).double()
    assert ((found.float_bias().double() - bias).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("bits", ["w2a2", "w4a4", "w8a8"])
def test_a_frozen_network_computes_nearly_the_same(small, bits):
    network, images = quantized(small, bits), noise(small, 64)
    expected, found = network(images), freeze(network)(images)
    assert (found - expected).abs().median() <= 2e-3 * expected.std()


def test_names_of_nodes_stay(small):
    network = quantized(small, "w4a4")
    names = {node.name for node in network.graph.nodes}
    frozen = freeze(network)
    assert {node.name for node in frozen.graph.nodes} == names - {"first"}
    assert list(frozen_layers(frozen)) == ["first", "twice", "twice_call_2", "head"]
    assert isinstance(
        called_module(network, next(n for n in network.graph.nodes if n.name == "norm")),
        nn.BatchNorm2d,
    ), "the student itself has changed"


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "linear"])
def test_sums_are_those_of_integers(kind):
    """Against int64 arithmetic in NumPy, with sums that float32 cannot hold."""
    generator = torch.Generator().manual_seed(0)
    channels, inputs = 5, {"convolution": (600, 3, 3), "depthwise": (1, 3, 3), "linear": (70000,)}
    shape = inputs[kind]
    stored = torch.randint(-128, 128, (channels, *shape), generator=generator).to(torch.int8)
    stored[stored == -128] = 127
    bias = torch.randint(-(2**28), 2**28, (channels,), generator=generator, dtype=torch.int32)
    scale = torch.rand(channels, generator=generator) + 0.5
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    parts = (8, stored, zeros, ones, scale, bias, torch.tensor(0.25), 255)
    if kind == "linear":
        layer = FrozenLinear(*parts)
        numbers = torch.randint(0, 256, (2, shape[0]), generator=generator)
        sums = numbers.numpy().astype(np.int64) @ stored.numpy().astype(np.int64).T
    else:
        groups = channels if kind == "depthwise" else 1
        width = shape[0] * groups
        layer = FrozenConv2d(nn.Conv2d(width, channels, 3, groups=groups), *parts)
        numbers = torch.randint(0, 256, (2, width, 3, 3), generator=generator)
        split = numbers.numpy().astype(np.int64).reshape(2, groups, -1)
        rows = stored.numpy().astype(np.int64).reshape(channels, -1)
        sums = np.stack(
            [(split[:, c if groups > 1 else 0] * rows[c]).sum(1) for c in range(channels)], 1
        )[:, :, None, None]
    along = (1, -1, *(1,) * (sums.ndim - 2))
    sums = sums + bias.numpy().astype(np.int64).reshape(along)
    assert np.abs(sums).max() > 2**24
    wanted = sums.astype(np.float32) * (0.25 * scale.numpy()).reshape(along)
    np.testing.assert_array_equal(layer(numbers * 0.25).numpy(), wanted)


def test_a_bias_beyond_int32_widens_its_steps():
    """A channel with next to no weights, as dead channels have."""
    torch.manual_seed(0)
    net = Small()
    with torch.no_grad():
        net.first.weight[1] *= 1e-14
        net.first.weight[2] = 0
        net.first.bias[1:3] = 3.0
    teacher = teacher_of(net)
    network = quantized(teacher, "w4a4")
    layer = frozen_layers(freeze(network))["first"]
    factor, shift = FrozenNorm(network.get_submodule("norm")).derive()
    wanted = network.get_submodule("first").bias * factor + shift
    torch.testing.assert_close(layer.float_bias(), wanted, rtol=1e-3, atol=1e-3)
    images = noise(teacher, 8)
    assert (freeze(network)(images) - network(images)).abs().max() < 0.2


def test_asymmetric_8_bit_weights_are_refused_with_the_way_out(small):
    network = quantized(small, "w8a8", weight_scheme="asymmetric")
    with pytest.raises(ModelError, match=r"first: codes of its 8-bit .*weight_scheme = symm"):
        freeze(network)


def test_weights_of_one_sign_are_refused(small):
    with torch.no_grad():
        small.module.twice.weight.abs_().add_(1.0)
    with pytest.raises(ModelError, match=r"twice: .*weights of one sign only"):
        freeze(quantized(small, "w7a4"))


def test_a_range_without_zero_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus(), nn.Flatten(), nn.Linear(256, 4))
    with torch.no_grad():
        net[0].bias.fill_(9.0)
    teacher = teacher_of(net)
    network = quantized(teacher, "w4a4", placement="all_inputs")
    with pytest.raises(ModelError, match=r"does not hold zero.*placement = integer"):
        freeze(network)
    freeze(quantized(teacher, "w4a4"))


def test_reduced_range_keeps_codes_within_half_of_int8(small):
    layers = frozen_layers(freeze(quantized(small, "w4a4"), reduce_range=True))
    assert int(layers["first"].codes().abs().max()) <= 63  # it reads 8-bit images
    # With 4-bit activations nothing saturates.
    assert int(layers["twice"].codes().abs().max()) > 63
    with pytest.raises(ModelError, match="without VNNI"):
        freeze(quantized(small, "w8a8"), reduce_range=True)


def test_only_what_layers_read_is_quantized():
    def quantizers(network):
        return {n.name for n in network.graph.nodes if n.name.startswith("quantize_")}

    frozen = freeze(student("w4a4"), layer_inputs_only=True)
    left_out = quantizers(student("w4a4")) - quantizers(frozen)
    assert left_out == {"quantize_norm2", "quantize_norm3", "quantize_relu_2"}


def test_a_placement_without_all_inputs_has_float_layers():
    network = student("w4a4", "after_relu")
    frozen = freeze(network)
    layers = frozen_layers(frozen)
    floats = {name for name, layer in layers.items() if layer.input_scale is None}
    assert floats == {"stem", "head"}
    images = noise(residual(), 8)
    expected, found = network(images), frozen(images)
    assert (found - expected).abs().median() < 5e-3 * expected.std()


def test_a_frozen_network_keeps_its_scales_in_another_type():
    frozen = copy.deepcopy(freeze(student("w4a4"))).half()
    assert all(
        m.scale.dtype == torch.float32 for m in frozen.modules() if isinstance(m, FrozenQuantizer)
    )


def test_quantizers_round_as_onnx_does():
    quantizer = FrozenQuantizer(torch.tensor(0.5), torch.tensor(3), 4)
    x = torch.tensor([-9.0, -1.5, -0.25, 0.25, 0.75, 5.9, 99.0, float("nan"), float("inf")])
    codes = [0, 0, 3, 3, 5, 15, 15]
    assert quantizer.codes(x[:7]).tolist() == codes
    expected = (torch.tensor(codes) - 3) * 0.5
    torch.testing.assert_close(quantizer(x)[:7], expected, rtol=0, atol=0)
    assert quantizer(x)[7].isnan() and quantizer(x)[8] == 6.0


def test_what_is_no_quantized_network_is_refused():
    with pytest.raises(ModelError, match="Linear is no model that synq-fast quantized"):
        freeze(nn.Linear(2, 2))
