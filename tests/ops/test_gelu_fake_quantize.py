"""What GELU with fake quantization means; the conformance suite compares the backends."""

import math

import pytest
import torch
from torch.nn import functional

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)


def run(function, x, scale, zero_point, bits, gradient, **options):
    leaves = [value.detach().clone().requires_grad_() for value in (x, scale, zero_point)]
    y = function(*leaves, bits, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def separate(x, scale, zero_point, bits, **options):
    return ops.fake_quantize_learned(functional.gelu(x), scale, zero_point, bits, **options)


def test_by_hand(device):  # noqa: F811
    x = torch.tensor([0.0, 1.0, 2.0, 9.0, -0.75, -9.0], device=device)
    # GELU of these is 0, 0.84134, 1.95450, 9, -0.16997 and 0; codes end at 7.
    y = ops.gelu_fake_quantize(x, 4.0, 0.0, 4)
    assert y.tolist() == [0.0, 0.75, 1.75, 1.75, -0.25, 0.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_beside_torch(device, bits):  # noqa: F811
    """The values, and gradients but those at codes that rounding turned."""
    x, gradient = torch.randn(2, 8, 197, 48, device=device).mul(1.5).unbind()
    scale = torch.tensor((2**bits - 1) / 2.5, device=device)
    zero_point = torch.tensor(2.0 ** (bits - 1) - 0.6, device=device)
    arguments = x, scale, zero_point, bits, gradient
    mine = run(ops.gelu_fake_quantize, *arguments, gradient_scale=0.5)
    theirs = run(separate, *arguments, gradient_scale=0.5)
    turned = (mine[0] != theirs[0]) | ((mine[1] == 0) != (theirs[1] == 0))
    assert turned.sum() <= x.numel() * 2**bits * 5e-7 + 2
    torch.testing.assert_close(mine[0], theirs[0], atol=1.001 / scale.item(), rtol=0)
    torch.testing.assert_close(mine[1][~turned], theirs[1][~turned], atol=1e-6, rtol=1e-5)
    # A turned code changes a sum by one term; a sum of terms of either sign is some hundreds.
    bound = 1e-5 * x.numel() / scale.item() ** 2 + 4 * turned.sum().item() / scale.item() ** 2
    for ours, expected in zip(mine[2:], theirs[2:], strict=True):
        assert abs(ours - expected) <= bound + 1e-4 * abs(expected)
        assert expected != 0


def test_the_lowest_value_takes_one_code(device):  # noqa: F811
    x = torch.linspace(-12, 12, 4001, device=device)
    y = ops.gelu_fake_quantize(x, 15 / 2.5, 7.0, 4)
    assert y.min() == pytest.approx(-1 / 6) and y.max() == pytest.approx(14 / 6)
    assert y.unique().numel() == 16


def test_tails_end(device):  # noqa: F811
    """A fine grid sees neither noise far below zero nor a slope other than the derivative."""
    x = torch.linspace(-30, 30, 4001, device=device, requires_grad=True)
    y = ops.gelu_fake_quantize(x, 256.0, 0.0, 16)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y[x < -6] == 0).all() and (slope[x < -15] == 0).all()
    wide = x.detach().double()
    density = torch.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    expected = torch.special.ndtr(wide) + wide * density
    torch.testing.assert_close(slope.double(), expected, atol=5e-7, rtol=0)


def test_half_types_keep_their_type(device):  # noqa: F811
    x = torch.randn(64, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        y = ops.gelu_fake_quantize(half, 6.0, 7.0, 4)
        assert y.dtype == dtype
        assert torch.equal(y, ops.gelu_fake_quantize(half.float(), 6.0, 7.0, 4).to(dtype))


X, ONE = torch.zeros(3), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], ONE, ONE, 4), TypeError, r"x must be a torch\.Tensor, got list"),
        ((X.double(), ONE, ONE, 4), TypeError, "x must be float32, float16 or bfloat16"),
        ((X, ONE.double(), ONE, 4), TypeError, "scale must be float32"),
        ((X, ONE, "0", 4), TypeError, "zero_point must be a number or a float32 tensor"),
        ((X, torch.ones(3), ONE, 4), ValueError, "scale must hold one value"),
        ((X, -ONE, ONE, 4), ValueError, "scale must be positive, got -1.0"),
        ((X, ONE, ONE, 17), ValueError, "bits must be from 2 to 16, got 17"),
        ((X, ONE, ONE, 4.0), TypeError, "bits must be an int"),
    ],
)
def test_bad_arguments(backend, arguments, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.gelu_fake_quantize(*arguments)
