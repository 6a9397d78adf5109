"""What the total variation means; the conformance suite compares the backends."""

import pytest
import torch

from synq_fast import ops
from tests.ops.backends import assert_same, device  # noqa: F401  (a fixture)

REDUCTIONS = ["batch", "image"]


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


def test_a_step_edge_by_hand():
    """Columns of 0 and 1: three differences of one to the right, and as many on each diagonal."""
    x = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 3, 4).clone()
    assert ops.total_variation(x).item() == pytest.approx(3**0.5 + 2 * 2**0.5)
    two = ops.total_variation(torch.cat([x, 2 * x]), "image")
    assert two.tolist() == pytest.approx([3**0.5 + 2 * 2**0.5, 2 * (3**0.5 + 2 * 2**0.5)])


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
