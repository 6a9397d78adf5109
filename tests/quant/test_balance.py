"""Balanced rounding: errors of kernels and channels that cancel, and nothing else moved."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synq_fast.errors import ModelError
from synq_fast.quant import balance
from synq_fast.quant.balance import balance_weights, balanced_codes
from synq_fast.quant.layers import quantize_layers


def quantized(layer, bits, symmetric=False):
    quantize_layers({layer: bits}, "learned", frozenset({bits}) if symmetric else frozenset())
    return layer


def in_steps(layer):
    """Weights and codes as the layer has them, both in steps, (C, C_in, H W) float64."""
    grid = layer.grid()
    rows = (-1, 1, 1)
    scale, zero = (v.double().view(rows) for v in (grid.scale, grid.zero_point))
    kernels = layer.weight.detach().double()
    kernels = kernels.flatten(2) if kernels.dim() > 2 else kernels.unsqueeze(2)
    given = layer.quantized_weight().detach().double().view_as(kernels)
    return kernels * scale - zero, (given * scale - zero).round(), grid


def one_by_one(at, codes):
    """SQuant's flips as the paper tells them, an element at a time; all within the range."""
    codes = codes.clone()
    for kernels, mine in zip(at, codes, strict=True):
        for kernel, own in zip(kernels, mine, strict=True):
            total = float((own - kernel).sum())
            sign = 1 if total > 0 else -1
            by_error = sorted(range(len(own)), key=lambda i: -sign * float(own[i] - kernel[i]))
            for i in by_error[: round(abs(total))]:
                own[i] -= sign
        sums = (mine - kernels).sum(1)
        total = float(sums.sum())
        sign = 1 if total > 0 else -1
        by_sum = sorted(range(len(sums)), key=lambda j: -sign * float(sums[j]))
        for j in by_sum[: round(abs(total))]:
            i = int((sign * (mine[j] - kernels[j])).argmax())
            mine[j, i] -= sign
    return codes


@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (4, 8, 3, 3), (5, 9, 1, 1), (3, 64), (2, 3, 5, 1)])
def test_codes_are_those_of_a_plain_loop(shape):
    g = torch.Generator().manual_seed(0)
    at = 3 * torch.randn(shape, generator=g, dtype=torch.float64)
    kernels = at.flatten(2) if at.dim() > 2 else at.unsqueeze(2)
    wanted = one_by_one(kernels, kernels.round()).view(shape)
    found = balanced_codes(at, at.round(), -100, 100)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, at.round())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    channels=st.integers(1, 4),
    inputs=st.integers(1, 9),
    kernel=st.sampled_from([1, 3]),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
)
def test_errors_cancel(seed, channels, inputs, kernel, bits, symmetric):
    torch.manual_seed(seed)
    layer = quantized(nn.Conv2d(inputs, channels, kernel), bits, symmetric)
    at, nearest, grid = in_steps(layer)
    before = layer.weight.detach().clone()
    turned = balance_weights(layer)
    after, codes, _ = in_steps(layer)
    narrow = grid.zero_point.abs() > 2**16  # of a single value, as far as float32 can tell
    assert torch.equal(after[narrow], at[narrow])
    at, nearest, codes = (v[~narrow] for v in (at, nearest, codes))
    assert int((codes != nearest).sum()) == turned
    assert ((codes - nearest).abs() <= 1).all()
    assert ((codes >= grid.low) & (codes <= grid.high)).all()
    inside = (at > grid.low) & (at < grid.high)
    # Each weight is on one of the two codes around it, and only those that turned have moved.
    assert ((codes - at)[inside].abs() < 1.0 + 1e-4).all()
    now, before = (v[~narrow].view_as(codes) for v in (layer.weight.detach(), before))
    assert torch.equal(now[codes == nearest], before[codes == nearest])
    # Where nothing is cut off, all that can be cancelled is.
    whole = inside.flatten(1).all(1)
    rest = (codes - at).sum(2)
    assert (rest[whole].abs() <= 1 + 1e-3).all()
    assert (rest.sum(1)[whole].abs() <= 0.5 + 1e-3).all()


def test_an_edge_kernel_stays_blind_to_brightness():
    """What 4 bits leave of a sum that is 0: half a step at most, and not what chance makes."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 3, groups=32, bias=False)
    with torch.no_grad():
        layer.weight -= layer.weight.mean((2, 3), keepdim=True)
    surface = torch.ones(1, 32, 3, 3)
    quantized(layer, 4)
    nearest = layer(surface).abs().mean()
    balance_weights(layer)
    assert layer(surface).abs().mean() < 0.5 * nearest


def test_layers_of_many_weights_are_balanced_in_parts(monkeypatch):
    torch.manual_seed(0)
    whole, parts = (quantized(nn.Conv2d(5, 7, 3), 4) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    turned = balance_weights(whole)
    monkeypatch.setattr(balance, "_AT_ONCE", 100)  # two of seven rows of 45
    assert balance_weights(parts) == turned > 0
    assert torch.equal(parts.weight, whole.weight)


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (3, 0, 3, 3), (2, 0)])
def test_no_weights(shape):
    assert balanced_codes(torch.zeros(shape), torch.zeros(shape), -8, 7).shape == shape


def test_a_grid_that_follows_the_weights_is_refused():
    layer = nn.Linear(4, 2)
    quantize_layers({layer: 4}, "minmax")
    with pytest.raises(ModelError, match="move with them"):
        balance_weights(layer)
