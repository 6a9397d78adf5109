"""The BN-statistics losses on a GPU, CUDA C++ and Triton, against float64."""

import pytest
import torch

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.recording import recorded
from tests.statistics_cases import (
    DTYPES,
    SHAPES,
    check_gradient,
    check_losses,
    exact,
    layouts,
    running,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def check(x: torch.Tensor) -> None:
    mean, var = running(x.shape[1])
    leaf = x.detach().cuda().requires_grad_()
    losses = ops.bn_statistics_loss(leaf, mean.cuda(), var.cuda())
    check_losses(losses, x, mean, var)
    _, _, of_mean, of_var = exact(x, mean, var)
    (gradient,) = torch.autograd.grad(losses[0] + 3 * losses[1], leaf)
    assert gradient.stride() == torch.empty_like(leaf).stride()
    check_gradient(gradient, of_mean + 3 * of_var, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(chosen, shape, dtype) -> None:
    for _, x in layouts(shape):
        check(x.to(dtype))


@pytest.mark.parametrize("shape", [(64, 64, 56, 56), (128, 16, 32, 32), (16, 512, 7, 7)], ids=str)
def test_larger_than_the_device(chosen, shape) -> None:
    x = torch.randn(shape) * 2 + 0.5
    check(x)
    check(x.to(memory_format=torch.channels_last))


def test_golden_values(chosen, golden) -> None:
    for _, case in golden_cases(golden("bn_statistics")):
        x = case["x"].cuda().requires_grad_()
        losses = ops.bn_statistics_loss(x, case["running_mean"].cuda(), case["running_var"].cuda())
        assert_close(losses[0].cpu(), case["mean_loss"], "statistics_loss")
        assert_close(losses[1].cpu(), case["var_loss"], "statistics_loss")
        (gradient,) = torch.autograd.grad(sum(losses), x)
        assert_close(gradient.cpu(), case["grad"], "statistics_gradient")


def test_variance_does_not_cancel(chosen) -> None:
    x = torch.randn(16, 8, 32, 32) + 1e4
    mean, var = running(8)
    loss = ops.bn_statistics_loss(x.cuda(), mean.cuda(), var.cuda())[1]
    assert loss.item() == pytest.approx(exact(x, mean, var)[1].item(), rel=1e-3)


def network() -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    inputs = [torch.randn(8, c, s, s, device="cuda") for c, s in ((16, 32), (32, 16), (64, 8))]
    means, variances = zip(*(running(x.shape[1]) for x in inputs), strict=True)
    return inputs, [mean.cuda() for mean in means], [var.cuda() for var in variances]


def test_network_is_the_sum_of_its_layers(chosen) -> None:
    inputs, means, variances = network()
    leaves = [x.requires_grad_() for x in inputs]
    weights = [0.5, 1.0, 2.0]
    loss = ops.bn_statistics_losses(leaves, means, variances, weights)
    gradients = torch.autograd.grad(loss, leaves)
    total = 0.0
    for x, mean, var, weight, gradient in zip(
        leaves, means, variances, weights, gradients, strict=True
    ):
        losses = ops.bn_statistics_loss(x, mean, var)
        total += weight / 3 * sum(losses).item()
        (expected,) = torch.autograd.grad(weight / 3 * sum(losses), x)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_every_run_gives_the_same_bits_and_is_captured(chosen) -> None:
    inputs, means, variances = network()
    leaves = [x.requires_grad_() for x in inputs]

    def step() -> tuple[torch.Tensor, ...]:
        loss = ops.bn_statistics_losses(leaves, means, variances)
        return loss, *torch.autograd.grad(loss, leaves)

    graph, captured = recorded(step)
    for _ in range(3):
        graph.replay()
        for mine, theirs in zip(captured, step(), strict=True):
            assert torch.equal(mine, theirs)
