"""A folded BatchNorm, ReLU and fake quantization in one pass: the bits of the ops in a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from synq_fast import ops, reference
from tests.ops.backends import require


def factors(channels, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(2, channels, generator=generator).to(device)
    return weight, bias


def mapped(x, weight, bias, residual=None):
    shape = [1, -1] + [1] * (x.ndim - 2)
    value = x.float() * weight.reshape(shape) + bias.reshape(shape)
    return value if residual is None else value + residual.float()


def composed(x, weight, bias, low, high, bits, residual=None, upper=None, ste="identity"):
    """The ops in a row, in float32."""
    value = mapped(x, weight, bias, residual)
    activation = functional.relu(value) if upper is None else functional.hardtanh(value, 0.0, upper)
    return reference.fake_quantize(activation, low, high, bits, ste=ste).to(x.dtype)


def test_folded_batch_norm():
    """Close to the BatchNorm itself, whose order of operations rounds otherwise."""
    x = torch.randn(4, 6, 9, 9)
    norm = torch.nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        weight = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * weight
        y = ops.affine_relu_fake_quantize(x, weight, bias, 0.0, 3.0, 8)
        expected = ops.fake_quantize(functional.relu(norm(x)), 0.0, 3.0, 8)
    step = 3 / 255
    assert (y - expected).abs().max() <= step * 1.01
    assert (y != expected).float().mean() < 1e-2


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=120),
    pairs=st.lists(
        st.tuples(st.floats(-10, 10, width=32), st.floats(-10, 10, width=32)),
        min_size=3,
        max_size=3,
    ),
    upper=st.none() | st.floats(2**-10, 100),
    bits=st.integers(2, 16),
)
def test_properties(values, pairs, upper, bits):
    x = torch.tensor(values[: len(values) // 3 * 3]).reshape(-1, 3)
    weight, bias = torch.tensor(pairs).T
    for arranged in (x, x.T.contiguous().T):
        for residual in (None, x.flip(0) * 3):
            arguments = arranged, weight, bias, 0.0, 7.0, bits
            y = ops.affine_relu_fake_quantize(*arguments, residual=residual, upper=upper)
            assert torch.equal(y, composed(*arguments, residual=residual, upper=upper))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_factors_are_checked(backend):
    require(backend)
    x = torch.zeros(2, 3)
    weight, bias = torch.ones(3), torch.zeros(3)
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"weight must have shape \(3,\)"):
            ops.affine_relu_fake_quantize(x, torch.ones(2), bias, 0.0, 1.0, 4)
        with pytest.raises(TypeError, match=r"bias must be a float32 tensor, or .*, got float"):
            ops.affine_relu_fake_quantize(x, weight, 0.0, 0.0, 1.0, 4)
        with pytest.raises(TypeError, match="weight must be float32"):
            ops.affine_relu_fake_quantize(x, weight.double(), bias, 0.0, 1.0, 4)
        with pytest.raises(ValueError, match="x must have a channel dimension 1"):
            ops.affine_relu_fake_quantize(torch.zeros(3), weight, bias, 0.0, 1.0, 4)
        with pytest.raises(ValueError, match="range_min must not exceed range_max"):
            ops.affine_relu_fake_quantize(x, weight, bias, 2.0, 1.0, 4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_residual_is_checked(backend):
    require(backend)
    x = torch.zeros(2, 3)
    arguments = x, torch.ones(3), torch.zeros(3), 0.0, 1.0, 4
    with ops.backend(backend):
        with pytest.raises(TypeError, match=r"residual must be a torch\.Tensor or None, got"):
            ops.affine_relu_fake_quantize(*arguments, residual=1.0)
        with pytest.raises(TypeError, match=r"residual must be of the type of x, torch\.float32"):
            ops.affine_relu_fake_quantize(*arguments, residual=x.half())
        with pytest.raises(ValueError, match=r"the shape of x, \(2, 3\), got \(3,\)"):
            ops.affine_relu_fake_quantize(*arguments, residual=x[0])
        with pytest.raises(ValueError, match="residual is on meta but x is on cpu"):
            ops.affine_relu_fake_quantize(*arguments, residual=x.to("meta"))


@pytest.mark.parametrize("op", ["affine_relu_fake_quantize", "affine_relu_fake_quantize_backward"])
def test_the_registered_op_checks_its_residual(op):
    require("cpu")
    x = torch.zeros(2, 3)
    arguments = torch.ones(3), torch.zeros(3)
    grid = torch.tensor(0.0), torch.tensor(1.0), 4, None, False
    if op.endswith("backward"):
        grid = *grid, True, True
        x, *arguments = x, x, *arguments
    call = getattr(torch.ops.synq_fast, op)
    for wrong, error in ((torch.zeros(2, 3).half(), TypeError), (torch.zeros(3, 2), ValueError)):
        with pytest.raises(error, match=r"residual (is not|must)"):
            call(x, *arguments, wrong, *grid)
