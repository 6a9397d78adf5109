"""The channels' moments on a GPU, CUDA C++ and Triton, against float64."""

import pytest
import torch

from synq_fast import ops, reference
from tests.kernel_cases import DTYPES, assert_same_bits
from tests.recording import recorded

pytestmark = pytest.mark.cuda

SHAPES = [(90, 70), (3, 5, 7), (64, 64, 56, 56), (33, 512, 7, 7), (1, 3, 1_000_001)]


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def layouts(x):
    yield x
    if x.ndim == 4:
        yield x.to(memory_format=torch.channels_last)
    yield x.transpose(0, 1)


def run(function, x, gradients):
    leaf = x.detach().requires_grad_()
    moments = function(leaf)
    torch.autograd.backward(moments, gradients)
    return [moment.detach() for moment in moments], leaf.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(chosen, shape, dtype: torch.dtype) -> None:
    for x in layouts(torch.randn(shape, device="cuda").to(dtype)):
        gradients = torch.randn(2, *x.shape[:2], device="cuda").unbind()
        moments, gradient = run(ops.channel_moments, x, gradients)
        wide = [value.double() for value in gradients]
        expected, expected_gradient = run(reference.channel_moments, x.double(), wide)
        for mine, theirs in zip(moments, expected, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine.double(), theirs, rtol=3e-6, atol=2e-6)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2 * unit, atol=1e-6)


def test_a_large_mean_costs_no_accuracy(chosen) -> None:
    for x in layouts(torch.randn(64, 64, 56, 56, device="cuda") + 1e4):
        for mine, theirs in zip(
            ops.channel_moments(x), reference.channel_moments(x.double()), strict=True
        ):
            torch.testing.assert_close(mine.double(), theirs, rtol=3e-6, atol=2e-6)


def test_every_run_gives_the_same_bits(chosen) -> None:
    for shape in ((2, 96, 257, 31), (64, 96, 14, 14)):
        for x in layouts(torch.randn(shape, device="cuda")):
            gradients = torch.randn(2, *x.shape[:2], device="cuda").unbind()
            first, gradient = run(ops.channel_moments, x, gradients)
            for _ in range(5):
                moments, again = run(ops.channel_moments, x, gradients)
                for mine, theirs in zip((*moments, again), (*first, gradient), strict=True):
                    assert_same_bits(mine, theirs, chosen)


def test_capture_in_a_cuda_graph(chosen) -> None:
    x = torch.randn(8, 64, 28, 28, device="cuda", requires_grad=True)

    def step() -> list[torch.Tensor]:
        mean, variance = ops.channel_moments(x)
        return [mean, variance, *torch.autograd.grad((variance + mean).sum(), x)]

    graph, captured = recorded(step)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert_same_bits(mine, theirs, "replayed")


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty(chosen, shape) -> None:
    x = torch.empty(shape, device="cuda", requires_grad=True)
    moments = ops.channel_moments(x)
    for moment in moments:
        assert moment.shape == shape[:2] and moment.isnan().all()
    sum(moment.sum() for moment in moments).backward()
    assert x.grad.shape == shape
