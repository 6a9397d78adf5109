"""What a logarithmic grid means; the conformance suite compares the backends."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)


def published(x, scale, bits):
    """FQ-ViT's rounding, with a logarithm in float64, and zero as the last code."""
    code = torch.round(-torch.log2((x.double() / scale).clamp(max=1.0)))
    return torch.where(code < 2**bits - 1, scale * torch.exp2(-code), 0.0)


def test_by_hand(device):  # noqa: F811
    x = torch.tensor([0.0, -0.3, 0.24, 0.36, 0.5, 0.71, 1.0, 9.0], device=device)
    # Two bits: 1, 1/2, 1/4 and 0. The middles are 0.707, 0.354 and 0.177.
    assert ops.fake_quantize_log(x, 1.0, 2).tolist() == [0, 0, 0.25, 0.5, 0.5, 1, 1, 1]
    assert ops.fake_quantize_log(x * 3, 3.0, 2).tolist() == [0, 0, 0.75, 1.5, 1.5, 3, 3, 3]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_beside_the_published_form(device, bits):  # noqa: F811
    x = torch.randn(4, 3, 197, 197, device=device).mul(3).softmax(-1)
    for scale in (1.0, 0.37):
        found = ops.fake_quantize_log(x, scale, bits)
        torch.testing.assert_close(found.double(), published(x, scale, bits), atol=0, rtol=1e-7)


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_levels(device, bits):  # noqa: F811
    """Of widths up to 6 every code is used; of wider ones those that float32 holds."""
    x = torch.exp2(torch.linspace(-140, 1, 30_001, dtype=torch.float64)).float().to(device)
    y = ops.fake_quantize_log(torch.cat([x, x.new_zeros(1)]), 1.0, bits)
    expected = [0.0, *(2.0**-code for code in range(min(2**bits - 2, 126), -1, -1))]
    assert y.unique().tolist() == expected


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 2, width=32),
    st.floats(1 / 64, 100, width=32),
    st.integers(2, 8),
)
def test_no_level_is_nearer(value, scale, bits):
    """In the logarithm, unless the value lies within rounding of the middle between two."""
    x = torch.tensor(value, dtype=torch.float32)
    found = ops.fake_quantize_log(x, scale, bits).item()
    ratio = min((x / torch.tensor(scale, dtype=torch.float32)).item(), 1.0)
    last = min(2**bits - 2, 126)
    if ratio < 2.0 ** -(last + 0.5) * (1 - 1e-6):
        assert found == 0
    elif ratio > 2.0 ** -(last + 0.5) * (1 + 1e-6):
        codes = range(last + 1)
        least = min(abs(code + math.log2(ratio)) for code in codes)
        assert abs(math.log2(found / scale) - math.log2(ratio)) <= least + 1e-5


def test_gradients(device):  # noqa: F811
    x = torch.tensor([0.0, -1.0, 0.3, 0.6, 3.0, 0.001], device=device, requires_grad=True)
    scale = torch.tensor(2.0, device=device, requires_grad=True)
    gradient = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], device=device)
    y = ops.fake_quantize_log(x, scale, 3)
    torch.testing.assert_close(y, torch.tensor([0, 0, 0.25, 0.5, 2.0, 0], device=device))
    of_x, of_scale = torch.autograd.grad(y, (x, scale), gradient)
    expected = [0.0, 0.0, 3 * 0.25 / 0.3, 4 * 0.5 / 0.6, 0.0, 0.0]
    torch.testing.assert_close(of_x, torch.tensor(expected, device=device))
    assert of_scale.item() == 5.0


def test_straight_through_in_the_logarithm(device):  # noqa: F811
    """A trained logarithm of x moves as that of y: the gradient of log x is g y."""
    logarithm = torch.linspace(-3, 0, 50, device=device, requires_grad=True)
    y = ops.fake_quantize_log(torch.exp(logarithm), 1.0, 4)
    (found,) = torch.autograd.grad(y.sum(), logarithm)
    torch.testing.assert_close(found, y.detach())


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_channel(device, axis):  # noqa: F811
    x = torch.rand(3, 5, 4, device=device, requires_grad=True)
    scale = torch.rand(x.shape[axis], device=device).add_(0.1).requires_grad_()
    gradient = torch.randn(x.shape, device=device)
    y = ops.fake_quantize_log(x, scale, 3, axis=axis)
    found = torch.autograd.grad(y, (x, scale), gradient)
    pairs = zip(x.unbind(axis), scale, strict=True)
    alone = torch.stack([ops.fake_quantize_log(part, one, 3) for part, one in pairs], axis)
    assert torch.equal(y, alone)
    for mine, theirs in zip(found, torch.autograd.grad(alone, (x, scale), gradient), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_types_keep_their_type(device):  # noqa: F811
    x = torch.rand(64, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        y = ops.fake_quantize_log(half, 0.7, 4)
        assert y.dtype == dtype
        assert torch.equal(y, ops.fake_quantize_log(half.float(), 0.7, 4).to(dtype))


X, ONE = torch.zeros(3), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], ONE, 4), TypeError, r"x must be a torch\.Tensor, got list"),
        ((X.double(), ONE, 4), TypeError, "x must be float32, float16 or bfloat16"),
        ((X, ONE.double(), 4), TypeError, "scale must be float32"),
        ((X, "1", 4), TypeError, "scale must be a number or a float32 tensor"),
        ((X, torch.ones(3), 4), ValueError, "scale must hold one value"),
        ((X, torch.ones(2), 4, 0), ValueError, "scale must have shape"),
        ((X, torch.tensor([1.0, 0.0, 1.0]), 4, 0), ValueError, "scale must be positive"),
        ((X, ONE, 4, 1), IndexError, "axis"),
        ((X, -ONE, 4), ValueError, "scale must be positive, got -1.0"),
        ((X, 0.0, 4), ValueError, "scale must be positive, got 0.0"),
        ((X, ONE, 17), ValueError, "bits must be from 2 to 16, got 17"),
        ((X, ONE, 4.0), TypeError, "bits must be an int"),
    ],
)
def test_bad_arguments(backend, arguments, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.fake_quantize_log(*arguments[:3], axis=arguments[3] if len(arguments) > 3 else None)
