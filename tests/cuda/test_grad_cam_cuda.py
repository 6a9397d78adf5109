"""The class activation map ops on a GPU, beyond what tests/ops/test_cam_kernels.py runs there."""

import pytest
import torch

from synq_fast import ops, reference
from tests.cam_cases import KINDS, Case, assert_results_close, call, gradients_for, results
from tests.recording import recorded
from tests.tolerances import assert_close

pytestmark = pytest.mark.cuda
ALL_KINDS = (*KINDS, "cam_alignment_loss")


@pytest.fixture(params=["cuda", "triton"], autouse=True)
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def make(kind: str, shape: tuple[int, ...], size: tuple[int, int], grid=None) -> Case:
    a, g = torch.rand(shape), gradients_for(kind, torch.randn(shape))
    return Case("", a, g, torch.zeros(shape[0]), torch.rand(shape[0], 1, *size), size, grid)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("shape", "size", "grid"),
    [
        ((200, 64, 8, 8), (32, 32), None),  # more images than multiprocessors
        ((16, 512, 7, 7), (224, 224), None),
        ((4, 196, 384), (224, 224), (14, 14)),
        ((2, 2048, 7, 7), (1024, 2050), None),  # tiles of pixel columns
        ((2, 24, 112, 112), (112, 112), None),  # an early layer, without resizing
    ],
)
def test_real_sizes(kind, shape, size, grid):
    case = make(kind, shape, size, grid)
    here = case.to("cuda")
    assert_results_close(results(lambda leaf: call(ops, kind, here, leaf), here), kind, case)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_capture_in_a_cuda_graph(kind):
    case = make(kind, (8, 64, 7, 7), (56, 56)).to("cuda")

    def step():
        leaf = case.activations.detach().requires_grad_()
        value = call(ops, kind, case, leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    graph, captured = recorded(step)
    case.activations.copy_(torch.rand_like(case.activations))
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_stream_and_unaligned_memory():
    case = make("layer_cam", (3, 8, 4, 4), (16, 16))
    buffer = torch.empty(2, case.activations.numel() + 1, device="cuda")
    buffer[0, 1:] = case.activations.flatten().cuda()
    buffer[1, 1:] = case.gradients.flatten().cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        a, g = (x[1:].view(3, 8, 4, 4) for x in buffer)
        cam = ops.layer_cam(a, g, (16, 16))
    stream.synchronize()
    expected = reference.layer_cam(case.activations, case.gradients, (16, 16))
    assert_close(cam.cpu(), expected, "cam_map")


def test_amp_loss_scale_reaches_the_gradient():
    case = make("cam_alignment_loss", (4, 16, 7, 7), (28, 28)).to("cuda")
    leaf = case.activations.requires_grad_()
    gradients = []
    for factor in (1.0, 1024.0):
        loss = ops.cam_alignment_loss(leaf, case.gradients, case.target) * factor
        gradients.append(torch.autograd.grad(loss, leaf)[0] / factor)
    torch.testing.assert_close(*gradients)
