"""Mean and variance of every channel of every image, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops
from synq_fast.testing.conformance import DTYPES
from tests.ops.backends import BACKENDS, assert_same, require


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_variances_of_values_that_are_all_but_equal(backend, device, dtype, channels_last):
    """Half types hold few values near ten; the variance is exactly that of those they hold."""
    require(backend)
    x = torch.full((2, 4, 40, 40), 10.0, dtype=dtype)
    x[:, 1, ::2], x[:, 2, 0, 0] = x[0, 0, 0, 0] * (1 + torch.finfo(dtype).eps), 11
    x[:, 3] = 0.1
    x = x.to(device)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with ops.backend(backend):
        _, variance = ops.channel_moments(x)
    expected = x.double().flatten(2).var(2, correction=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=1e-16)
    assert (variance[:, [0, 3]] < 1e-15).all()


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=90),
    channels=st.integers(1, 3),
    channels_last=st.booleans(),
)
def test_properties(values, channels, channels_last):
    x = torch.tensor(values[: len(values) // (2 * channels) * 2 * channels])
    x = x.reshape(2, channels, -1, 1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    mean, variance = ops.channel_moments(x)
    flat = x.double().reshape(2, channels, -1)
    torch.testing.assert_close(mean.double(), flat.mean(2), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(variance.double(), flat.var(2, correction=0), atol=1e-9, rtol=1e-5)
    # A variance is not negative, and copies change nothing.
    assert (variance >= 0).all()
    for one, other in zip(ops.channel_moments(x.flip(0)), (mean, variance), strict=True):
        assert_same(one.flip(0), other)


def test_the_energy_of_a_batch_norm():
    """What the op is for: the mean square after an affine map, from the moments before it."""
    x = torch.randn(4, 6, 9, 9)
    weight, bias = torch.randn(2, 6).unbind()
    mean, variance = ops.channel_moments(x)
    energy = weight**2 * variance + (weight * mean + bias) ** 2
    expected = (x * weight[:, None, None] + bias[:, None, None]).square().mean((2, 3))
    torch.testing.assert_close(energy, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_arguments_are_checked(backend):
    require(backend)
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"x must have shape \(B, C, ...\), got \(3,\)"):
            ops.channel_moments(torch.zeros(3))
        with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64"):
            ops.channel_moments(torch.zeros(2, 3, dtype=torch.int64))
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
            ops.channel_moments([1.0])


def test_the_registered_op_checks_its_arguments():
    require("cpu")
    x = torch.zeros(2, 3, 4)
    forward, backward = (
        torch.ops.synq_fast.channel_moments,
        torch.ops.synq_fast.channel_moments_backward,
    )
    with pytest.raises(ValueError, match=r"x (is not|must have)"):
        forward(x[0, 0])
    with pytest.raises(TypeError, match=r"x (is not|must be)"):
        forward(x.double())
    for wrong in (torch.zeros(2, 4), torch.zeros(2, 3).double(), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"of_variance (is not|must be)"):
            backward(None, wrong, x, x[..., 0])
        with pytest.raises(ValueError, match=r"mean (is not|must be)"):
            backward(None, x[..., 0], x, wrong)
    assert torch.equal(backward(None, None, x, x[..., 0]), x)
