"""BN-statistics loss: golden values and gradients, a float64 oracle, stability."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops, reference
from synq_fast.testing.cases._statistics import loss_terms, stored
from tests.tolerances import assert_close


def statistics(channels):
    return torch.randn(channels), torch.rand(channels) + 0.5


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


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 20), st.floats(-50, 50), st.booleans())
def test_any_shape_of_statistics(batch, channels, inner, offset, last):
    x = torch.randn(batch, channels, inner, 2) + offset
    if last:
        x = x.to(memory_format=torch.channels_last)
    mean, var = stored(channels)
    losses = ops.bn_statistics_loss(x, mean, var)
    for value, wanted in zip(
        losses, loss_terms(x.double(), mean.double(), var.double()), strict=True
    ):
        # A unit in the last place of x moves a mean, whose error is squared.
        slack = 4e-6 * (1 + abs(offset)) * wanted.sqrt().item()
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=slack + 1e-7)


def test_mean_of_a_network():
    inputs = [torch.randn(4, 3, 5, 5), torch.full((4, 8), torch.nan), torch.randn(2, 5, 4)]
    means, variances = zip(*(stored(x.shape[1]) for x in inputs), strict=True)
    for backend in ("auto", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with ops.backend(backend):
            loss = ops.bn_statistics_losses(leaves, means, variances, [1.0, 0, 2.5])
        loss.backward()
        # A layer of weight 0 is not even read.
        assert leaves[1].grad is None
        total = 0.0
        for i, weight in ((0, 1.0), (2, 2.5)):
            leaf = inputs[i].double().requires_grad_()
            loss_of_layer = weight / 3 * sum(loss_terms(leaf, means[i], variances[i]))
            total += loss_of_layer.item()
            loss_of_layer.backward()
            torch.testing.assert_close(leaves[i].grad.double(), leaf.grad, rtol=1e-5, atol=1e-8)
        assert loss.item() == pytest.approx(total, rel=1e-5)
    plain = ops.bn_statistics_losses(inputs[::2], means[::2], variances[::2])
    ones = ops.bn_statistics_losses(inputs[::2], means[::2], variances[::2], [1, 1])
    assert torch.equal(plain, ones)


@pytest.mark.parametrize("namespace", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("types", [("float32",), ("float32", "float64")], ids=str)
def test_no_layer_that_counts_gives_a_zero_of_the_usual_type(namespace, types):
    inputs = [torch.rand(2, 3, dtype=getattr(torch, name)) for name in types]
    stored = [torch.zeros(3) for _ in types]
    loss = namespace.bn_statistics_losses(inputs, stored, stored, [0.0] * len(inputs))
    counted = namespace.bn_statistics_losses(inputs, stored, stored)
    assert loss == 0 and loss.dtype == counted.dtype and loss.shape == ()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": []}, ValueError, "inputs is empty"),
        ({"running_vars": [torch.ones(3)]}, ValueError, "running_vars must have one entry.*2, got"),
        ({"weights": [1.0]}, ValueError, "weights must have one entry per layer, 2, got 1"),
        ({"weights": [1.0, "2"]}, TypeError, r"weights\[1\] must be a number"),
        ({"weights": [1.0, float("nan")]}, ValueError, r"weights\[1\] must be finite"),
        ({"running_means": [torch.zeros(3), torch.zeros(2)]}, ValueError, r"\(C,\) = \(3,\)"),
        ({"inputs": [torch.rand(2, 3), torch.empty(0, 3)]}, ValueError, "x is empty"),
    ],
)
def test_bad_layers(change, error, message):
    arguments = {
        "inputs": [torch.rand(2, 3), torch.rand(4, 3)],
        "running_means": [torch.zeros(3)] * 2,
        "running_vars": [torch.ones(3)] * 2,
        "weights": None,
    }
    with pytest.raises(error, match=message):
        ops.bn_statistics_losses(**(arguments | change))


def test_constant_channel_has_no_variance_gradient():
    x = torch.full((4, 2, 3, 3), 1.5, requires_grad=True)
    _, var_loss = ops.bn_statistics_loss(x, torch.zeros(2), torch.ones(2))
    var_loss.backward()
    assert var_loss == 1
    assert not x.grad.any()
