import pytest
import torch
from torch import nn

from synq_fast import ops, reference
from synq_fast.quant import held_weights
from synq_fast.quant.layers import QuantizedConv2d, QuantizedLinear, quantize_layers


def _layers(bits: int = 4) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 7))
    assert quantize_layers(dict.fromkeys(net.modules(), bits)) == 2
    return net


@pytest.fixture
def counted(monkeypatch):
    calls = []
    original = ops.fake_quantize_dynamic

    def count(x, bits, **options):
        calls.append(x)
        return original(x, bits, **options)

    monkeypatch.setattr(ops, "fake_quantize_dynamic", count)
    return calls


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_those_of_the_reference_bit_for_bit(bits):
    net = _layers(bits)
    assert (type(net[0]), type(net[2])) == (QuantizedConv2d, QuantizedLinear)
    for layer in (net[0], net[2]):
        expected, low, _ = reference.fake_quantize_dynamic(layer.weight, bits, axis=0)
        assert torch.equal(layer.quantized_weight(), expected)
        assert low.shape == (layer.weight.shape[0],)
        # One scale per output channel: at most 2^bits values in each.
        assert all(len(row.unique()) <= 2**bits for row in layer.quantized_weight())


def test_outputs_are_those_of_the_quantized_weights():
    net = _layers(2)
    x = torch.randn(2, 3, 4, 4)
    weight = reference.fake_quantize_dynamic(net[0].weight, 2, axis=0)[0]
    expected = nn.functional.conv2d(x, weight, net[0].bias)
    assert torch.equal(net[0](x), expected)
    assert not torch.equal(net[0](x), nn.functional.conv2d(x, net[0].weight, net[0].bias))


def test_range_follows_the_current_weights():
    net = _layers()
    before = net[2].quantized_weight()
    with torch.no_grad():
        net[2].weight.mul_(3)
    assert torch.allclose(net[2].quantized_weight(), 3 * before)


def test_held_weights_are_quantized_once(counted):
    net = _layers()
    with held_weights(net):
        for _ in range(3):
            net(torch.randn(2, 3, 4, 4))
        assert len(counted) == 2
    for _ in range(3):
        net(torch.randn(2, 3, 4, 4))
    assert len(counted) == 2 + 3 * 2


def test_held_gradient_equals_the_free_one():
    net = _layers()
    passes = [torch.randn(2, 3, 4, 4) for _ in range(2)]

    def gradients(hold: bool) -> list[torch.Tensor]:
        net.zero_grad()
        if hold:
            with held_weights(net):
                sum(net(x).square().sum() for x in passes).backward()
        else:
            sum(net(x).square().sum() for x in passes).backward()
        return [p.grad.clone() for p in net.parameters()]

    for held, free in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(held, free)
        assert held.abs().sum() > 0


def test_weights_are_let_go_after_an_error():
    net = _layers()
    with pytest.raises(RuntimeError, match="stop"), held_weights(net):
        raise RuntimeError("stop")
    with torch.no_grad():
        net[2].weight.zero_()
    assert not net[2].quantized_weight().any()


def test_other_modules_and_subclasses_stay():
    class Special(nn.Linear):
        pass

    net = nn.Sequential(Special(2, 2), nn.Conv1d(2, 2, 1), nn.Linear(2, 2))
    assert quantize_layers(dict.fromkeys(net.modules(), 4)) == 1
    assert [type(m) for m in net] == [Special, nn.Conv1d, QuantizedLinear]


# Ranges that are trained


def _learned(bits: int = 3) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 7))
    quantize_layers(dict.fromkeys(net.modules(), bits), "learned")
    return net


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_ranges_start_at_those_of_least_error(bits):
    for layer in (_learned(bits)[0], _learned(bits)[2]):
        channels = [reference.search_range(channel, bits) for channel in layer.weight.detach()]
        low, high = (torch.stack(ends) for ends in zip(*channels, strict=True))
        expected = reference.fake_quantize(layer.weight.detach(), low, high, bits, axis=0)
        torch.testing.assert_close(layer.quantized_weight(), expected, atol=1e-6, rtol=1e-6)
        assert layer.gain.requires_grad and torch.equal(layer.gain, torch.ones(len(low)))


def test_gain_scales_the_range_and_the_grid_says_so():
    layer = _learned()[2]
    before, (low, high) = layer.grid(), layer.ranges()
    with torch.no_grad():
        layer.gain.mul_(2)
    after = layer.grid()
    assert torch.equal(after.scale, before.scale / 2)
    assert torch.equal(after.zero_point, before.zero_point)
    assert all(torch.equal(a, 2 * b) for a, b in zip(layer.ranges(), (low, high), strict=True))
    codes = layer.quantized_weight() * after.scale[:, None] - after.zero_point[:, None]
    assert (codes - codes.round()).abs().max() < 1e-4
    assert codes.min() >= after.low - 1e-4 and codes.max() <= after.high + 1e-4


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_a_gain_that_fell_too_low_turns_no_range_over(gain):
    layer = _learned()[2]
    with torch.no_grad():
        layer.gain.fill_(gain)
    low, high = layer.ranges()
    quantized = layer.quantized_weight()
    assert (layer.grid().scale > 0).all() and (low <= high).all()
    assert (quantized >= low[:, None] - 1e-4).all() and (quantized <= high[:, None] + 1e-4).all()


def test_gradient_of_a_gain_is_the_straight_through_one():
    layer = _learned()[2]
    with torch.no_grad():
        layer.gain.mul_(0.7)  # so that some weights lie outside
    weights = torch.randn(layer.weight.shape)
    (layer.quantized_weight() * weights).sum().backward()
    grid = layer.grid()
    scale, zero = (value.double()[:, None] for value in (grid.scale, grid.zero_point))
    w = layer.weight.detach().double()
    codes = (w * scale - zero).round()
    clipped = (codes < grid.low) | (codes > grid.high)
    y = (codes.clamp(grid.low, grid.high) + zero) / scale
    # dy/dgain = (y - w) / gain inside the range, y / gain outside; LSQ's factor beside it.
    slope = torch.where(clipped, y, y - w) / layer.gain.detach().double()[:, None]
    expected = (weights * slope).sum(1) / (w.shape[1] * 7) ** 0.5
    assert clipped.any() and not clipped.all()
    torch.testing.assert_close(layer.gain.grad.double(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(layer.weight.grad, weights.masked_fill(clipped, 0.0))


def test_learned_ranges_follow_the_module_and_its_state():
    net, other = _learned(), _learned()
    with torch.no_grad():
        net[0].gain.mul_(1.5)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other[0].quantized_weight(), net[0].quantized_weight())
    assert {"0.gain", "0.ends", "2.gain", "2.ends"} <= net.state_dict().keys()
