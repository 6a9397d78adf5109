"""The low-pass filters on a GPU, CUDA C++ and Triton, against float64 on the CPU."""

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.runtime.capture import capture, warm_up
from synq_fast.runtime.precision import tensor_float32
from tests.kernel_cases import DTYPES
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.cuda

SHAPES = {
    (16, 3, 224, 224): "ImageNet",
    (256, 3, 32, 32): "CIFAR",
    (2, 3, 33, 47): "odd",
    (1, 1, 1): "one value",
    (3, 248, 250): "sides on both sides of the narrower tile",
    (2, 299, 448): "odd; the longest side of the CUDA kernel",
    (1, 449, 700): "too long for it",
    (5000, 3, 5, 6): "many small ones",
}


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("kind", ["gaussian", "butterworth", "ideal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(chosen, shape, kind) -> None:
    x = torch.randn(shape)
    for cutoff in (2.0, 0.36 * shape[-1]):
        expected = reference.low_pass(x.double(), cutoff, kind=kind)
        assert_close(ops.low_pass(x.cuda(), cutoff, kind=kind).cpu(), expected, "low_pass")


@pytest.mark.parametrize("channels", [1, 3, 4, 64])
def test_channels_last(chosen, channels) -> None:
    x = torch.randn(4, channels, 56, 40).to(memory_format=torch.channels_last)
    y = ops.low_pass(x.cuda(), 9.0)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y.cpu(), reference.low_pass(x.double(), 9.0), "low_pass")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types_round_once(chosen, dtype) -> None:
    for size in ((32, 32), (33, 47)):
        x = torch.randn(8, 3, *size, device="cuda").to(dtype)
        assert torch.equal(ops.low_pass(x, 8.0), ops.low_pass(x.float(), 8.0).to(dtype))


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_unaligned_memory(chosen, shift) -> None:
    x = torch.randn(3 * 32 * 40 + shift, device="cuda")[shift:].view(3, 32, 40)
    expected = reference.low_pass(x.double().cpu(), 8.0)
    assert_close(ops.low_pass(x, 8.0).cpu(), expected, "low_pass")


def test_tf32_is_a_choice(chosen) -> None:
    x = torch.randn(16, 3, 64, 64)
    expected = reference.low_pass(x.double(), 16.0)
    with tensor_float32(True):
        error = (ops.low_pass(x.cuda(), 16.0).cpu() - expected).abs().max()
    assert TOLERANCES["low_pass"].atol < error < 1e-2


@pytest.mark.parametrize("kind", ["gaussian", "butterworth"])
def test_gradient(chosen, kind) -> None:
    x = torch.randn(2, 3, 20, 22, device="cuda", requires_grad=True)
    gradient = torch.randn_like(x)
    ops.low_pass(x, 5.0, kind=kind).backward(gradient)
    assert torch.equal(x.grad, ops.low_pass(gradient, 5.0, kind=kind))


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "first use"])
@pytest.mark.parametrize("kind", ["gaussian", "butterworth"])
def test_capture_in_a_cuda_graph(chosen, kind, warm) -> None:
    # A cutoff that nothing else uses: without warming up the graph has to build what it needs.
    cutoff = 7.25 if warm else 7.375
    x = torch.randn(8, 3, 32, 36, device="cuda")
    warm_up(lambda: ops.low_pass(x, cutoff if warm else 1.0, kind=kind), x.device)
    graph, y = capture(lambda: ops.low_pass(x, cutoff, kind=kind), x.device)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = reference.low_pass(x.double().cpu(), cutoff, kind=kind)
    assert_close(y.cpu(), expected, "low_pass")


def test_every_run_gives_the_same_bits(chosen) -> None:
    x = torch.randn(32, 3, 96, 160, device="cuda")
    first = ops.low_pass(x, 30.0)
    for _ in range(5):
        assert torch.equal(ops.low_pass(x, 30.0), first)
