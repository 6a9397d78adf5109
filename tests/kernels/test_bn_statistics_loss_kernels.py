"""The Triton kernels of the BN-statistics losses, run by Triton's interpreter."""

import pytest
import torch

from synq_fast import ops
from tests.statistics_cases import (
    DTYPES,
    SHAPES,
    check_gradient,
    check_losses,
    exact,
    layouts,
    running,
)

# NumPy, which the interpreter runs on, tells when infinities appear, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def triton():
    with ops.backend("triton"):
        yield


def check(x: torch.Tensor) -> None:
    mean, var = running(x.shape[1])
    leaf = x.detach().requires_grad_()
    losses = ops.bn_statistics_loss(leaf, mean, var)
    check_losses(losses, x, mean, var)
    _, _, of_mean, of_var = exact(x, mean, var)
    for loss, expected in zip(losses, (of_mean, of_var), strict=True):
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        check_gradient(gradient, expected, x.dtype)
    (gradient,) = torch.autograd.grad(losses[0] + 3 * losses[1], leaf)
    check_gradient(gradient, of_mean + 3 * of_var, x.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape) -> None:
    for _, x in layouts(shape):
        check(x)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(dtype) -> None:
    x = (torch.randn(3, 5, 4, 6) + 1).to(dtype)
    check(x)
    check(x.to(memory_format=torch.channels_last))


def test_variance_does_not_cancel() -> None:
    x = torch.randn(4, 3, 8, 8) + 1e4
    mean, var = running(3)
    loss = ops.bn_statistics_loss(x, mean, var)[1]
    assert loss.item() == pytest.approx(exact(x, mean, var)[1].item(), rel=1e-3)


def test_network() -> None:
    inputs = [torch.randn(4, 3, 5, 5), torch.randn(4, 8), torch.randn(2, 5, 4)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    means, variances = zip(*(running(x.shape[1]) for x in inputs), strict=True)
    loss = ops.bn_statistics_losses(leaves, means, variances, [1.0, 0.0, 2.5])
    loss.backward()
    assert leaves[1].grad is None
    total = 0.0
    for i, weight in ((0, 1.0), (2, 2.5)):
        mean_loss, var_loss, of_mean, of_var = exact(inputs[i], means[i], variances[i])
        total += weight / 3 * (mean_loss + var_loss).item()
        check_gradient(leaves[i].grad, weight / 3 * (of_mean + of_var), torch.float32)
    assert loss.item() == pytest.approx(total, rel=1e-6)


def test_opcheck() -> None:
    library, x = torch.ops.synq_fast, torch.randn(3, 4, 5, requires_grad=True)
    mean, var = running(4)
    torch.library.opcheck(library.bn_statistics_loss.triton, (x, mean, var))
    layers = [x, torch.randn(2, 4, requires_grad=True)]
    torch.library.opcheck(
        library.bn_statistics_losses.triton, (layers, [mean, mean], [var, var], [0.5, 2.0])
    )
    mean_loss = ops.bn_statistics_loss(x, mean, var)[0]
    (gradient,) = torch.autograd.grad(mean_loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()
