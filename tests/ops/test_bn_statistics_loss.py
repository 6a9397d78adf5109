"""BN-statistics loss: golden values and gradients, a float64 oracle, stability."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.tolerances import assert_close

SHAPES = (
    (1, 1),  # one element: no variance
    (6, 5),
    (1, 3, 1, 1),
    (4, 7, 9),
    (3, 5, 7, 11),
    (2, 3, 4, 5, 6),
    (16, 64, 32, 32),  # sums over 16384 elements per channel
)


def oracle(x, running_mean, running_var):
    """Both losses in float64 NumPy."""
    x = np.moveaxis(x.detach().double().numpy(), 1, 0).reshape(x.shape[1], -1)
    mean_error = x.mean(1) - running_mean.double().numpy()
    var_error = x.var(1) - running_var.double().numpy()
    return (mean_error**2).mean(), (var_error**2).mean()


def closed_form_gradient(x, running_mean, running_var):
    """d(mean_loss + var_loss) / dx in float64."""
    x = x.detach().double()
    channels, count = x.shape[1], x.numel() / x.shape[1]
    dims = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    shape = mean.shape
    of_mean = 2 / channels * (mean - running_mean.double().view(shape)) / count
    of_var = 2 / channels * (var - running_var.double().view(shape)) * 2 * (x - mean) / count
    return of_mean + of_var


def statistics(channels):
    return torch.randn(channels), torch.rand(channels) + 0.5


def test_golden(golden):
    for _, case in golden_cases(golden("bn_statistics")):
        x = case["x"].requires_grad_()
        losses = ops.bn_statistics_loss(x, case["running_mean"], case["running_var"])
        assert_close(losses[0], case["mean_loss"], "statistics_loss")
        assert_close(losses[1], case["var_loss"], "statistics_loss")
        (grad,) = torch.autograd.grad(sum(losses), x)
        assert_close(grad, case["grad"], "statistics_gradient")


@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape):
    x = (torch.randn(shape) * 2 + 0.5).requires_grad_()
    running = statistics(shape[1])
    losses = ops.bn_statistics_loss(x, *running)
    for actual, expected in zip(losses, oracle(x, *running), strict=True):
        assert actual.shape == ()
        assert actual.dtype == torch.float32
        assert_close(actual, expected, "statistics_loss")
    (grad,) = torch.autograd.grad(sum(losses), x)
    expected = closed_form_gradient(x, *running)
    largest = expected.abs().max().item()
    assert_close(grad, expected, "statistics_gradient", factor=max(1.0, 200 * largest))


@pytest.mark.parametrize("offset", [1e3, -1e4])
def test_variance_does_not_cancel(offset):
    x = torch.randn(8, 4, 16, 16) + offset
    running = torch.full((4,), offset), torch.ones(4)
    expected = oracle(x, *running)
    assert_close(ops.bn_statistics_loss(x, *running)[1], expected[1], "statistics_loss", factor=10)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_invariances(batch, channels, length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, length, generator=generator, dtype=torch.float64)
    running_mean = torch.randn(channels, generator=generator, dtype=torch.float64)
    running_var = torch.rand(channels, generator=generator, dtype=torch.float64)
    losses = ops.bn_statistics_loss(x, running_mean, running_var)
    shifted = ops.bn_statistics_loss(x + 3, running_mean + 3, running_var)
    scaled = ops.bn_statistics_loss(x * 2, running_mean * 2, running_var * 4)
    samples = ops.bn_statistics_loss(x.flip(0).flip(2), running_mean, running_var)
    for i, power in enumerate((4, 16)):
        assert_close(shifted[i], losses[i], "float64")
        assert_close(scaled[i], losses[i] * power, "float64")
        assert_close(samples[i], losses[i], "float64")
    own_var, own_mean = torch.var_mean(x, (0, 2), correction=0)
    assert sum(ops.bn_statistics_loss(x, own_mean, own_var)) < 1e-20


def test_gradients():
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    running_mean, running_var = (s.double().requires_grad_() for s in statistics(2))
    assert torch.autograd.gradcheck(
        lambda v: ops.bn_statistics_loss(v, running_mean, running_var), x
    )
    sum(ops.bn_statistics_loss(x, running_mean, running_var)).backward()
    assert running_mean.grad is None
    assert running_var.grad is None


def test_constant_channel_has_no_variance_gradient():
    x = torch.full((4, 2, 3, 3), 1.5, requires_grad=True)
    _, var_loss = ops.bn_statistics_loss(x, torch.zeros(2), torch.ones(2))
    var_loss.backward()
    assert var_loss == 1
    assert not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_accumulate_in_float32(dtype):
    x = (torch.randn(32, 2, 16, 16) + 3).to(dtype)
    running = statistics(2)
    actual = ops.bn_statistics_loss(x, *running)
    for value, expected in zip(actual, oracle(x, *running), strict=True):
        assert value.dtype == torch.float32
        assert_close(value, expected, "statistics_loss")


def test_strides():
    x, running = torch.randn(3, 4, 6, 5), statistics(4)
    expected = oracle(x, *running)
    transposed = x.transpose(0, 3).contiguous().transpose(0, 3)
    for strided in (x.to(memory_format=torch.channels_last), transposed):
        for value, exact in zip(ops.bn_statistics_loss(strided, *running), expected, strict=True):
            assert_close(value, exact, "statistics_loss")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value):
    x = torch.randn(2, 3, 4)
    x[1, 2, 3] = value
    mean_loss, var_loss = ops.bn_statistics_loss(x, torch.zeros(3), torch.ones(3))
    assert not mean_loss.isfinite()
    assert var_loss.isnan()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(3)}, ValueError, r"x must have shape \(N, C, ...\), got \(3,\)"),
        ({"x": torch.randn(0, 3, 2)}, ValueError, "x is empty.*it has no statistics"),
        ({"x": torch.ones(4, 3).int()}, TypeError, "x must be float16"),
        ({"running_mean": torch.zeros(4)}, ValueError, r"running_mean.*\(C,\) = \(3,\), got \(4,"),
        ({"running_var": torch.ones(1, 3)}, ValueError, r"running_var must.*got \(1, 3\)"),
        ({"running_var": None}, TypeError, "running_var must be a torch.Tensor, got NoneType"),
        ({"running_var": torch.ones(3, device="meta")}, ValueError, "running_var is on meta"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "x": torch.randn(4, 3),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
    }
    with pytest.raises(error, match=message):
        ops.bn_statistics_loss(**(arguments | change))
