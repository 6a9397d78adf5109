"""The loss that aligns two class activation maps."""

import pytest
import torch

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.tolerances import assert_close


def test_golden_map_aligns_with_itself(golden):
    for _, case in golden_cases(golden("grad_cam")):
        if case["kind"] == "grad_cam":
            loss = ops.cam_alignment_loss(case["activations"], case["gradients"], case["map"])
            assert_close(loss, 0.0, "cam_loss")
            flipped = case["map"].flip(-1)
            loss = ops.cam_alignment_loss(case["activations"], case["gradients"], flipped)
            expected = (case["map"].double() - flipped.double()).square().mean()
            assert_close(loss, expected, "cam_loss")
            assert loss > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 7, 7), (2, 64, 8, 5)])
@pytest.mark.parametrize("size", [(8, 8), (13, 31)])
def test_is_the_mean_squared_difference(shape, size):
    activations, gradients = torch.randn(2, *shape)
    target = torch.rand(shape[0], 1, *size)
    loss = ops.cam_alignment_loss(activations, gradients, target, clamp=0.01, eps=1e-3)
    cam = ops.grad_cam(activations.double(), gradients.double(), size, clamp=0.01, eps=1e-3)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert_close(loss, (cam - target).square().mean(), "cam_loss")


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_reaches_the_loss(where):
    tensors = [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(2, 1, 8, 8)]
    tensors[where][1, 0, 1, 1] = float("nan")
    assert ops.cam_alignment_loss(*tensors).isnan()


def test_empty_batch_and_strides():
    activations, gradients = torch.rand(2, 2, 3, 4, 4)
    target = torch.rand(2, 1, 8, 6)
    empty = ops.cam_alignment_loss(activations[:0], gradients[:0], target[:0])
    assert empty == 0
    expected = ops.cam_alignment_loss(activations, gradients, target)
    transposed = target.transpose(2, 3).contiguous().transpose(2, 3)
    channels_last = activations.to(memory_format=torch.channels_last)
    assert_close(ops.cam_alignment_loss(channels_last, gradients, transposed), expected, "cam_loss")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.rand(3, 1, 8, 8), r"B = 2 as in activations.*got \(3, 1, 8, 8\)"),
        (torch.rand(2, 3, 8, 8), r"must have shape \(B, 1, H, W\).*got \(2, 3, 8, 8\)"),
        (torch.rand(2, 8, 8), r"must have shape \(B, 1, H, W\), got \(2, 8, 8\)"),
        (torch.rand(2, 1, 0, 8), "at least one pixel"),
        (torch.rand(2, 1, 8, 8, device="meta"), "target_map is on meta"),
    ],
)
def test_bad_target(target, message):
    with pytest.raises(ValueError, match=message):
        ops.cam_alignment_loss(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), target)


def test_bad_numbers():
    tensors = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="clamp must be at least 0"):
        ops.cam_alignment_loss(*tensors, clamp=-1.0)
    with pytest.raises(TypeError, match="eps must be a number, got None"):
        ops.cam_alignment_loss(*tensors, eps=None)


A, G = torch.rand(2, 2, 5, 3, 4)
TARGET = torch.rand(2, 1, 8, 6)


def test_nothing_large_is_saved():
    leaf, g = torch.rand(2, 64, 7, 7, requires_grad=True), torch.rand(2, 64, 7, 7)
    target = torch.rand(2, 1, 32, 32)
    for function in (
        lambda: ops.grad_cam(leaf, g, (32, 32)),
        lambda: ops.cam_alignment_loss(leaf, g, target),
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
            function()
        assert sorted(x.numel() for x in saved) == [2 * 49, 2 * 64]


def test_loss_without_gradient_skips_it():
    op = torch.ops.synq_fast.cam_alignment_loss
    leaf = A.clone().requires_grad_()
    loss, _, slope = op(leaf, G, TARGET, 1e-10, 1e-10, False)
    assert not loss.requires_grad
    assert slope.numel() == 0
    with torch.no_grad():
        assert torch.equal(ops.cam_alignment_loss(leaf, G, TARGET), loss)
