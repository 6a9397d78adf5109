"""Learned grids and fused activations on a GPU, CUDA C++ and Triton, equal the reference."""

import pytest
import torch

from synq_fast import ops, reference
from tests.kernel_cases import DTYPES, assert_same_bits
from tests.recording import recorded
from tests.tolerances import assert_close

pytestmark = pytest.mark.cuda

SHAPES = [(33,), (3, 5, 7), (90, 70), (8, 64, 56, 56), (2, 3, 500_001), (250_001, 96)]


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def gradients(function, leaves, gradient, device):
    leaves = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
    y = function(*leaves)
    y.backward(gradient.to(device))
    return y.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)


def check(actual, expected, count, kind, name) -> None:
    for mine, theirs in zip(actual[:2], expected[:2], strict=True):
        assert_same_bits(mine, theirs, name)
    for mine, theirs in zip(actual[2:], expected[2:], strict=True):
        # The reference sums in float32 too.
        assert_close(mine / count, theirs / count, kind, factor=30.0)


def layouts(x):
    yield x
    if x.ndim == 4:
        yield x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_learned(chosen, shape, dtype: torch.dtype) -> None:
    for axis in (None, 1) if len(shape) > 1 else (None, 0):
        channels = () if axis is None else (shape[axis],)
        pair = torch.rand(channels) * 3 + 1, torch.randn(channels) * 3
        count = torch.Size(shape).numel() / max(pair[0].numel(), 1)
        for x in layouts(torch.randn(shape).to(dtype)):
            gradient = torch.randn(shape).to(dtype)
            results = [
                gradients(
                    lambda *leaves, m=module, a=axis: m.fake_quantize_learned(*leaves, 4, axis=a),
                    (x, *pair),
                    gradient,
                    device,
                )
                for module, device in ((ops, "cuda"), (reference, "cpu"))
            ]
            check(*results, count, "learned_gradient", f"{shape} axis {axis}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 1], ids=str)
@pytest.mark.parametrize("upper", [None, 1.5])
def test_relu_and_affine_relu(chosen, shape, dtype: torch.dtype, upper) -> None:
    factors = torch.randn(2, shape[1]).unbind()
    count = torch.Size(shape).numel() / shape[1]
    options = {"upper": upper, "ste": "clip"}
    for x in layouts(torch.randn(shape).to(dtype)):
        gradient = torch.randn(shape).to(dtype)
        for name, leaves in (
            ("relu_fake_quantize", (x,)),
            ("affine_relu_fake_quantize", (x, *factors)),
        ):
            results = [
                gradients(
                    lambda *leaves, m=module, n=name: getattr(m, n)(
                        *leaves, 0.0, 2.0, 4, **options
                    ),
                    leaves,
                    gradient,
                    device,
                )
                for module, device in ((ops, "cuda"), (reference, "cpu"))
            ]
            check(*results, count, "affine_gradient", f"{name} {shape}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 1], ids=str)
@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_residual(chosen, shape, dtype: torch.dtype, ste: str) -> None:
    factors = torch.randn(2, shape[1]).unbind()
    count = torch.Size(shape).numel() / shape[1]
    for x in layouts(torch.randn(shape).to(dtype)):
        residual, gradient = (torch.randn(shape).to(dtype) for _ in range(2))
        results = [
            gradients(
                lambda x, residual, *factors, m=module: m.affine_relu_fake_quantize(
                    x, *factors, 0.0, 2.0, 4, residual=residual, ste=ste
                ),
                (x, residual, *factors),
                gradient,
                device,
            )
            for module, device in ((ops, "cuda"), (reference, "cpu"))
        ]
        (y, of_x, of_residual, *sums), (expected, *others) = results
        assert_same_bits(of_residual, others[1], f"residual {shape}")
        check((y, of_x, *sums), (expected, others[0], *others[2:]), count, "affine_gradient", shape)


def test_every_run_gives_the_same_bits(chosen) -> None:
    x = torch.randn(64, 96, 57, 31, device="cuda")
    gradient = torch.randn_like(x)
    pair = torch.full((96,), 3.0, device="cuda"), torch.zeros(96, device="cuda")
    bounds = torch.zeros((), device="cuda"), torch.ones((), device="cuda")

    def run():
        learned = torch.ops.synq_fast.fake_quantize_learned_backward
        affine = torch.ops.synq_fast.affine_relu_fake_quantize_backward
        if chosen == "triton":
            learned, affine = learned.triton, affine.triton
        return [
            *learned(gradient, x, *pair, 4, 1, 1.0),
            *affine(gradient, x, *pair, None, *bounds, 4, None, True, True, False),
            *affine(gradient, x, *pair, gradient, *bounds, 4, None, True, True, True),
        ]

    first = run()
    for _ in range(5):
        for mine, theirs in zip(run(), first, strict=True):
            assert_same_bits(mine, theirs, chosen)


def test_capture_in_a_cuda_graph(chosen) -> None:
    x = torch.randn(32, 64, 28, 28, device="cuda", requires_grad=True)
    weight, bias = torch.randn(2, 64, device="cuda").unbind()
    leaves = [value.detach().clone().requires_grad_() for value in (weight, bias)]
    scale = torch.full((64,), 3.0, device="cuda", requires_grad=True)

    def step() -> list[torch.Tensor]:
        y = ops.affine_relu_fake_quantize(x, *leaves, 0.0, 2.0, 4, upper=6.0)
        y = ops.affine_relu_fake_quantize(y, *leaves, 0.0, 2.0, 4, residual=x)
        y = ops.fake_quantize_learned(y, scale, 0.0, 4, axis=1)
        return [y, *torch.autograd.grad(y.sum(), (x, *leaves, scale))]

    graph, captured = recorded(step)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert_same_bits(mine, theirs, "replayed")
