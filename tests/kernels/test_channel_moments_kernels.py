"""The Triton kernels of the channels' moments, interpreted, against float64."""

import pytest
import torch

from synq_fast import reference
from tests.kernel_cases import DTYPES, interpretable

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

# One position, short runs, runs and columns of several parts, odd sizes everywhere.
SHAPES = [(2, 3), (1, 1, 1), (3, 5, 7), (2, 70, 5, 3), (1, 2, 9001), (1, 33, 20, 30)]


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


def layouts(x):
    yield x
    if x.ndim == 4:
        yield x.to(memory_format=torch.channels_last)
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield torch.stack([x, x], -1)[..., 1]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, dtype) for shape in SHAPES for dtype in DTYPES if interpretable(shape, dtype)],
    ids=str,
)
def test_moments(kernels, shape, dtype: torch.dtype) -> None:
    for x in layouts(torch.randn(shape).to(dtype)):
        leaf = x.double().requires_grad_()
        moments = reference.channel_moments(leaf)
        for mine, theirs in zip(kernels.channel_moments(x), moments, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine.double(), theirs.detach(), rtol=3e-6, atol=2e-6)
        gradients = torch.randn(2, *shape[:2]).unbind()
        for wanted in ((True, True), (True, False), (False, True)):
            chosen = [g if w else None for g, w in zip(gradients, wanted, strict=True)]
            total = sum(
                (moment * gradient).sum()
                for moment, gradient in zip(moments, chosen, strict=True)
                if gradient is not None
            )
            (expected,) = torch.autograd.grad(total, leaf, retain_graph=True)
            actual = kernels.channel_moments_backward(*chosen, x, moments[0].float().detach())
            assert actual.dtype == dtype and actual.stride() == torch.empty_like(x).stride()
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(actual.double(), expected, rtol=2 * unit, atol=1e-6)


def test_a_large_mean_costs_no_accuracy(kernels) -> None:
    for shape in SHAPES:
        for x in layouts(torch.randn(shape) + 1e4):
            for mine, theirs in zip(
                kernels.channel_moments(x), reference.channel_moments(x.double()), strict=True
            ):
                torch.testing.assert_close(mine.double(), theirs, rtol=3e-6, atol=2e-6)


def test_nan_and_infinity(kernels) -> None:
    x = torch.randn(2, 4, 9)
    x[0, 1, 3], x[1, 2, 0] = float("nan"), float("inf")
    for mine, theirs in zip(kernels.channel_moments(x), reference.channel_moments(x), strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    gradient = torch.randn(2, 4)
    actual = kernels.channel_moments_backward(gradient, None, x, gradient)
    torch.testing.assert_close(actual, (gradient / 9)[..., None].expand(x.shape))


def test_empty(kernels) -> None:
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x = torch.empty(shape)
        for moment in kernels.channel_moments(x):
            assert moment.shape == shape[:2] and moment.isnan().all()
        gradient = torch.ones(shape[:2])
        assert kernels.channel_moments_backward(gradient, gradient, x, gradient).shape == shape
