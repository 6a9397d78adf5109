"""ReLU and fake quantization in one pass: the bits of the two in a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from synq_fast import ops, reference
from tests.ops.backends import require


def composed(x, low, high, bits, axis=None, upper=None, ste="identity"):
    """The ops that a network would call one after the other."""
    activation = functional.relu(x) if upper is None else functional.hardtanh(x, 0.0, upper)
    return reference.fake_quantize(activation, low, high, bits, axis=axis, ste=ste)


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200),
    high=st.floats(2**-10, 1e4, width=32),
    upper=st.none() | st.floats(2**-10, 1e4),
    bits=st.integers(2, 16),
)
def test_properties(values, high, upper, bits):
    x = torch.tensor(values)
    y = ops.relu_fake_quantize(x, 0.0, high, bits, upper=upper)
    assert torch.equal(y, composed(x, 0.0, high, bits, upper=upper))
    assert (y >= 0).all()
    assert (y[x <= 0] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_by_hand(backend):
    require(backend)
    values = [-1.0, 0.0, 1e-3, 5.9, 6.0, 7.0, float("nan"), float("inf")]
    x = torch.tensor(values, requires_grad=True)
    with ops.backend(backend):
        plain = ops.relu_fake_quantize(x, 0.0, 4.0, 4)
        bounded = ops.relu_fake_quantize(x, 0.0, 4.0, 4, upper=6)
        clipped = ops.relu_fake_quantize(x, 0.0, 4.0, 4, upper=6, ste="clip")
    for y, wanted in (
        (plain, [0, 0, 1, 1, 1, 1, 1, 1]),
        (bounded, [0, 0, 1, 1, 0, 0, 1, 0]),
        (clipped, [0, 0, 1, 0, 0, 0, 1, 0]),
    ):
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.tolist() == wanted


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_upper_is_checked(backend):
    require(backend)
    x = torch.zeros(3)
    with ops.backend(backend):
        for upper in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="upper must be positive and finite, got"):
                ops.relu_fake_quantize(x, 0.0, 1.0, 4, upper=upper)
        for upper in ("6", True):
            with pytest.raises(TypeError, match="upper must be a number or None"):
                ops.relu_fake_quantize(x, 0.0, 1.0, 4, upper=upper)
    with pytest.raises(ValueError, match=r"upper (is not|must be)"):
        arguments = x, torch.zeros(()), torch.ones(()), 4, None
        torch.ops.synq_fast.relu_fake_quantize(*arguments, -1.0, False)
