"""The total variation against its definition, on every backend that runs here."""

import pytest
import torch

from synq_fast import ops
from tests.ops.backends import assert_same, device, require  # noqa: F401  (a fixture)

SHAPES = {
    (2, 3, 4, 5): "an image",
    (1, 1, 1, 1): "a pixel without a neighbour",
    (2, 2, 1, 9): "a row",
    (2, 2, 9, 1): "a column",
    (3, 5, 7, 11): "odd sides",
    (2, 3, 33, 70): "rows longer than a vector",
    (2, 64, 6, 5): "many channels",
}
REDUCTIONS = ["batch", "image"]


def oracle(x, reduction):
    """The value and its gradient from sums over pixels in float64."""
    x = x.detach().double().cpu()
    dims = (0, 1, 2, 3) if reduction == "batch" else (1, 2, 3)
    gradient = torch.zeros_like(x)
    total = 0.0
    height, width = x.shape[2:]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = torch.zeros(height, width, dtype=torch.bool)
        here[: height - down, max(-right, 0) : width - max(right, 0)] = True
        # Rolled, so that a pixel and its neighbour are at one place.
        difference = torch.where(here, x.roll((-down, -right), (2, 3)) - x, 0.0)
        norm = difference.square().sum(dims, keepdim=True).sqrt()
        total = total + norm
        unit = torch.where(norm > 0, difference / norm, 0.0)
        gradient += unit.roll((down, right), (2, 3)) - unit
    return total.reshape(()) if reduction == "batch" else total.flatten(), gradient


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, None], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_definition(device, shape, layout, reduction):  # noqa: F811
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.mT.contiguous().mT if layout is None else x.contiguous(memory_format=layout)
    expected, gradient = oracle(x, reduction)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)):
        leaf = x.detach().to(dtype).clone().requires_grad_()
        if dtype != torch.float32:
            expected, gradient = oracle(leaf, reduction)
        value = ops.total_variation(leaf, reduction)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-5, atol=1e-5)
        value.sum().backward()
        assert leaf.grad.stride() == torch.empty_like(leaf).stride()
        torch.testing.assert_close(leaf.grad.cpu().double(), gradient, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_edges(device, reduction):  # noqa: F811
    x = torch.ones(2, 3, 5, 5, device=device, requires_grad=True)
    ops.total_variation(x, reduction).sum().backward()
    assert_same(x.grad, torch.zeros(2, 3, 5, 5))
    for shape in ((0, 3, 5, 5), (2, 3, 0, 5), (2, 0, 5, 5)):
        empty = torch.zeros(shape, device=device, requires_grad=True)
        value = ops.total_variation(empty, reduction)
        assert value.sum() == 0
        value.sum().backward()
        assert empty.grad.shape == empty.shape
    x = torch.randn(2, 1, 4, 4, device=device)
    x[1, 0, 1, 1] = float("nan")
    value = ops.total_variation(x, reduction)
    assert value.isnan().tolist() == (True if reduction == "batch" else [False, True])


def test_float64_takes_the_reference():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(lambda x, r=reduction: ops.total_variation(x, r), x)
        value, gradient = oracle(x, reduction)
        torch.testing.assert_close(ops.total_variation(x, reduction), value)
        (found,) = torch.autograd.grad(ops.total_variation(x, reduction).sum(), x)
        torch.testing.assert_close(found, gradient)


def test_bits_do_not_depend_on_threads():
    require("cpu")
    x = torch.randn(3, 3, 70, 90)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        ops.total_variation(leaf).backward()
        results.append((ops.total_variation(x, "image"), leaf.grad))
    torch.set_num_threads(before)
    for first, second in zip(*results, strict=True):
        assert_same(first, second)


@pytest.mark.compile
@pytest.mark.parametrize("per_image", [False, True])
def test_registration(per_image):
    x = torch.randn(2, 3, 5, 6)
    op = torch.ops.synq_fast.total_variation.default
    torch.library.opcheck(op, (x.clone().requires_grad_(), per_image))
    value, norms = op(x, per_image)
    torch.library.opcheck(
        torch.ops.synq_fast.total_variation_backward.default, (torch.ones_like(value), x, norms)
    )
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(op(leaf, per_image)[0].sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_arguments_are_checked(backend):
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"x must have shape \(B, C, H, W\), got \(3, 4\)"):
            ops.total_variation(torch.zeros(3, 4))
        with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64"):
            ops.total_variation(torch.zeros(1, 1, 2, 2).int())
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
            ops.total_variation([0.0])
        with pytest.raises(ValueError, match='reduction must be "batch" or "image", got \'sum\''):
            ops.total_variation(torch.zeros(1, 1, 2, 2), "sum")
