"""Values of a learned grid and its straight-through gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.ops.backends import require
from tests.tolerances import assert_close


def oracle(x, scale, zero_point, bits, gradient, axis=None, gradient_scale=1.0):
    """Returns the three gradients in float64, from the definition alone."""
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    x, s, g = x.double(), scale.double().reshape(shape), gradient.double()
    z = zero_point.double().round().reshape(shape)
    half = 2 ** (bits - 1)
    # Where float32 and float64 disagree on a tie, the definition is that of float32.
    codes = torch.round(scale.reshape(shape) * x.float() - z.float()).double()
    q = codes.clamp(-half, half - 1)
    y, clipped = (q + z) / s, codes != q
    of_scale = g * torch.where(clipped, -y, x - y) / s
    of_zero = torch.where(clipped, g, 0.0) / s
    of_x = torch.where(clipped, 0.0, g)
    sums = (terms.sum_to_size(s.shape) * gradient_scale for terms in (of_scale, of_zero))
    return of_x, *(total.reshape(scale.shape) for total in sums)


def run(function, x, scale, zero_point, bits, gradient, **options):
    leaves = [value.detach().clone().requires_grad_() for value in (x, scale, zero_point)]
    y = function(*leaves, bits, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def assert_close_sums(actual, wanted, scale, zero_point, elements):
    """Compares the parameters' gradients in units of what a code's rounding errors do to them."""
    unit = (8 + zero_point.abs().double()) / scale.double().square()
    for mine, theirs in zip(actual, wanted, strict=True):
        count = max(elements / max(scale.numel(), 1), 1)
        assert_close((mine / unit).cpu(), (theirs / unit).cpu(), "learned_gradient", factor=count)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_by_hand(backend):
    require(backend)
    # scale 2, zero point round(0.6) = 1: codes round(2x - 1) in [-8, 7], values from -3.5 to 4.
    x = torch.tensor([0.3, 10.0, -10.0, float("nan"), float("inf")], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    zero_point = torch.tensor(0.6, requires_grad=True)
    with ops.backend(backend):
        y = ops.fake_quantize_learned(x, scale, zero_point, 4, gradient_scale=0.25)
        first, _ = torch.autograd.grad(
            y[:3] @ torch.ones(3), (scale, zero_point), retain_graph=True
        )
    assert y[:3].tolist() == [0.5, 4.0, -3.5] and y[4] == 4.0
    # The NaN is in range: its gradient times zero is NaN, and the sum of its channel with it.
    assert first.isnan()
    with ops.backend(backend):
        y = ops.fake_quantize_learned(x[:3], scale, zero_point, 4, gradient_scale=0.25)
    of_x, of_scale, of_zero = torch.autograd.grad(y.sum(), (x, scale, zero_point))
    assert of_x.tolist() == [1, 0, 0, 0, 0]
    assert of_scale.item() == pytest.approx(0.25 * ((0.3 - 0.5) / 2 - 4 / 2 + 3.5 / 2))
    assert of_zero.item() == 0.25 * (1 / 2 + 1 / 2)


finite = st.floats(-100, 100, width=32)


@given(
    values=st.lists(finite, min_size=1, max_size=200),
    scale=st.floats(2**-6, 2**6, width=32),
    zero=st.floats(-100, 100, width=32),
    bits=st.integers(2, 16),
)
def test_properties(values, scale, zero, bits):
    x = torch.tensor(values)
    arguments = x, torch.tensor(scale), torch.tensor(zero), bits, torch.ones_like(x)
    actual = run(ops.fake_quantize_learned, *arguments)
    expected = run(reference.fake_quantize_learned, *arguments)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    largest = max(map(abs, values)) * scale
    assert_close_sums(
        actual[2:], oracle(*arguments)[1:], arguments[1], arguments[2].abs() + largest, x.numel()
    )


def test_long_sums_are_accurate():
    require("cpu")
    x = torch.rand(2_000_000) * 0.1
    pair = torch.tensor(7.0), torch.tensor(0.0)
    gradient = torch.rand_like(x) + 0.5
    actual = run(ops.fake_quantize_learned, x, *pair, 4, gradient)
    torch.testing.assert_close(
        actual[2].double(), oracle(x, *pair, 4, gradient)[1], rtol=2e-7, atol=0
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_scale_must_be_positive(backend):
    require(backend)
    x = torch.zeros(2, 3)
    with ops.backend(backend):
        for scale in (0.0, -1.0, torch.tensor(-1.0)):
            with pytest.raises(ValueError, match=r"scale must be positive, got -?[01]"):
                ops.fake_quantize_learned(x, scale, 0.0, 4)
        with pytest.raises(ValueError, match="in channel 1"):
            ops.fake_quantize_learned(x, torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3), 4, axis=1)
        with pytest.raises(ValueError, match=r"zero_point must have shape \(3,\)"):
            ops.fake_quantize_learned(x, torch.ones(3), torch.zeros(2), 4, axis=1)
        with pytest.raises(TypeError, match="scale must be float32"):
            ops.fake_quantize_learned(x, torch.ones((), dtype=torch.float64), 0.0, 4)
