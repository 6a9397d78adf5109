import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synq_fast import ops
from synq_fast.quant.layers import QuantizedLinear, quantize_layers
from synq_fast.quant.placement import symmetric_widths
from synq_fast.quant.quantizer import grid_of
from synq_fast.quant.symmetric import searched, symmetric_ends


def layer(bits, range="minmax", weight=None):
    torch.manual_seed(0)
    net = nn.Linear(32, 5)
    if weight is not None:
        with torch.no_grad():
            net.weight.copy_(weight)
    quantize_layers({net: bits}, range, frozenset({bits}))
    assert isinstance(net, QuantizedLinear)
    return net


@given(st.floats(2.0**-20, 2.0**20, width=32), st.integers(2, 8))
def test_the_zero_point_is_zero(largest, bits):
    ends = symmetric_ends(torch.tensor([largest], dtype=torch.float32), bits)
    grid = grid_of(*ends, bits)
    assert grid.zero_point.tolist() == [0.0]
    highest = grid.high / float(grid.scale)
    assert highest == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("range", ["minmax", "mse", "learned"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_channels_that_are_given_up_have_the_zero_point_too(bits, range):
    """EfficientNet-Lite0 has dozens of them, of weights such as 1e-20."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 32, generator=g) * torch.tensor([[0.0], [1e-30], [1e-9], [6e-9], [1.0]])
    net = layer(bits, range, weight)
    assert net.grid().zero_point.tolist() == [0.0] * 5
    assert (net.quantized_weight().detach()[:4].abs() < 2e-8).all()
    codes = torch.round(net.quantized_weight().detach() * net.grid().scale[:, None])
    assert codes.abs().max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("range", ["minmax", "mse", "learned"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_no_code_is_the_lowest(bits, range):
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    weight[:, 0] = -9.0  # an outlier that searched ranges cut off
    net = layer(bits, range, weight)
    grid = net.grid()
    codes = torch.round(net.quantized_weight().detach() * grid.scale[:, None])
    assert grid.zero_point.abs().max() == 0 and grid.low == -grid.high
    assert codes.abs().max() <= 2 ** (bits - 1) - 1
    if range != "minmax" and bits < 8:
        assert (net.ranges()[1] < 9.0).any()


def test_searched_ranges_have_no_more_error_than_the_extremes():
    weight = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) ** 3
    for bits in (2, 4, 8):
        found, whole = searched(weight, bits), symmetric_ends(weight.abs().amax(1), bits)

        def error(ends, bits=bits):
            y = ops.fake_quantize(weight, *ends, bits, axis=0)
            return (y - weight).abs().pow(2.4).mean(1)

        assert (error(found) <= error(whole)).all()


def test_gradients_of_a_learned_range_are_lsqs():
    """Of clipped weights the gain gets plus or minus the largest number, whichever side."""
    weight = torch.tensor([[-5.0, 5.0, 0.3, 0.0]])
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(weight)
    quantize_layers({net: 4}, "learned", frozenset({4}))
    ends = torch.tensor([[-8.0 / 7.0], [1.0]])
    net.ends = ends
    upstream = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    (net.quantized_weight() * upstream).sum().backward()
    factor = 1 / (4 * 15) ** 0.5
    inside = (round(0.3 * 7) - 0.3 * 7) / 7  # rounding error of the one weight inside, in units
    wanted = factor * (-1.0 + 10.0 + 100.0 * inside)
    assert net.gain.grad.item() == pytest.approx(wanted, rel=1e-4)
    assert net.weight.grad.tolist() == [[0.0, 0.0, 100.0, 1000.0]]


def test_the_gradient_of_fixed_ranges_passes():
    net = layer(4, "mse")
    net.quantized_weight().sum().backward()
    assert (net.weight.grad == 1).all()


def test_which_widths_are_symmetric():
    assert symmetric_widths("auto", "after_relu") == frozenset()
    assert symmetric_widths("auto", "integer") == {8}
    assert symmetric_widths("symmetric", "after_relu") == {2, 3, 4, 5, 6, 7, 8}
    assert symmetric_widths("asymmetric", "integer") == frozenset()
