"""Grad-CAM: golden maps, hand-computed maps, the rule for flat maps, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.tolerances import assert_close


def test_by_hand():
    activations = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]], [[9.0, 9.0], [0.0, -9.0]]]])
    # Mean gradients 1 and -2: the second channel is clamped away.
    gradients = torch.tensor([[[[0.0, 2.0], [1.0, 1.0]], [[-2.0, -2.0], [-2.0, -2.0]]]])
    cam = ops.grad_cam(activations, gradients, (2, 2), eps=0)
    assert_close(cam, [[[[0.0, 0.25], [0.5, 1.0]]]], "cam_map")
    both = ops.grad_cam(activations, gradients.abs(), (2, 2), eps=0)
    # 1 * first + 2 * second = 19, 20, 3, -13, and ReLU makes the last 0.
    assert_close(both, [[[[0.95, 1.0], [0.15, 0.0]]]], "cam_map")


def test_upsampling_does_not_align_corners():
    cam = ops.grad_cam(torch.tensor([[[[0.0, 1.0]]]]), torch.ones(1, 1, 1, 2), (1, 4))
    assert_close(cam, [[[[0.0, 0.25, 0.75, 1.0]]]], "cam_map")


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**31),
)
def test_range_and_scale(shape, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    activations, gradients = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    cam = ops.grad_cam(activations, gradients, (6, 7), clamp=0, eps=0)
    assert cam.min() >= 0
    assert cam.max() <= 1
    assert torch.isin(cam.amax((1, 2, 3)), torch.tensor([0.0, 1.0]).double()).all()
    scaled = ops.grad_cam(activations * scale, gradients, (6, 7), clamp=0, eps=0)
    assert_close(scaled, cam, "cam_map")
    scaled = ops.grad_cam(activations, gradients * scale, (6, 7), clamp=0, eps=0)
    assert_close(scaled, cam, "cam_map")


@pytest.mark.parametrize("level", [1e-20, 0.3, 7.7, 1e20])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 7, 7)])
def test_flat_map_is_zero_with_zero_gradient(level, shape):
    activations = torch.full(shape, level, requires_grad=True)
    cam = ops.grad_cam(activations, torch.full(shape, 0.37), (32, 31))
    cam.square().sum().backward()
    assert torch.equal(cam, torch.zeros(2, 1, 32, 31))
    assert torch.equal(activations.grad, torch.zeros(shape))


@pytest.mark.parametrize(("step", "flat"), [(5e-7, True), (2e-6, False)])
def test_flatness_threshold(step, flat):
    activations = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    activations[0, 0, 1, 1] -= step
    cam = ops.grad_cam(activations, torch.ones_like(activations), (2, 2))
    assert cam.any().item() != flat


@pytest.mark.parametrize("eps", [1e-10, 0.0])
def test_map_without_positive_evidence_is_zero(eps):
    leaf = (-torch.rand(2, 3, 4, 4)).requires_grad_()
    cam = ops.grad_cam(leaf, torch.ones(2, 3, 4, 4), (8, 8), eps=eps)
    cam.sum().backward()
    assert not cam.any()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_flat_and_other_images_do_not_mix():
    activations, gradients = torch.rand(2, 3, 4, 5, 5)
    activations[1] = 2.0
    cam = ops.grad_cam(activations, gradients, (10, 10))
    assert not cam[1].any()
    assert_close(cam[0], ops.grad_cam(activations[:1], gradients[:1], (10, 10))[0], "cam_map")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activations": torch.rand(3, 4, 4)}, ValueError, r"activations must have shape \(B, C"),
        ({"activations": torch.ones(2, 3, 4, 4).int()}, TypeError, "activations must be float16"),
        ({"gradients": torch.rand(2, 3, 4, 5)}, ValueError, r"gradients.*\(2, 3, 4, 4\).*4, 5\)"),
        ({"gradients": None}, TypeError, "gradients must be a torch.Tensor, got NoneType"),
        ({"gradients": torch.rand(2, 3, 4, 4, device="meta")}, ValueError, "gradients is on meta"),
        ({"size": 8}, TypeError, r"size must be a pair \(height, width\), got 8"),
        ({"size": (8,)}, ValueError, "size must be a pair .*got 1 numbers"),
        ({"size": (8, 0)}, ValueError, "the width, must be at least 1, got 0"),
        ({"size": (8.0, 8)}, TypeError, "the height, must be an int, got 8.0"),
        ({"clamp": -1}, ValueError, "clamp must be at least 0, got -1"),
        ({"eps": float("nan")}, ValueError, "eps must be finite"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "activations": torch.rand(2, 3, 4, 4),
        "gradients": torch.rand(2, 3, 4, 4),
        "size": (8, 8),
    }
    with pytest.raises(error, match=message):
        ops.grad_cam(**(arguments | change))


def test_image_without_activations():
    with pytest.raises(ValueError, match=r"activations is empty, with shape \(2, 0, 4, 4\)"):
        ops.grad_cam(torch.empty(2, 0, 4, 4), torch.empty(2, 0, 4, 4), (8, 8))
