"""Grad-CAM++: golden maps, an oracle written with loops, extreme scores, gradients."""

import math

import numpy as np
import pytest
import torch

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.tolerances import assert_close


def looped_map(activations, gradients, score, eps):
    """The map of one image at the size of its activations, in float64 with explicit loops."""
    a, g = activations.double().numpy(), gradients.double().numpy()
    channels, height, width = a.shape
    total = np.zeros((height, width))
    for c in range(channels):
        third = sum(a[c, i, j] * g[c, i, j] ** 3 for i in range(height) for j in range(width))
        weight = 0.0
        for i in range(height):
            for j in range(width):
                alpha = g[c, i, j] ** 2 / (2 * g[c, i, j] ** 2 + third + eps)
                weight += alpha * max(math.exp(score) * g[c, i, j], 0)
        total += weight * a[c]
    total = np.maximum(total, 0)
    return (total - total.min()) / (total.max() - total.min() + eps)


def test_golden(golden):
    seen = 0
    for _, case in golden_cases(golden("grad_cam")):
        if case["kind"] == "grad_cam_pp":
            size = tuple(case["size"].tolist())
            cam = ops.grad_cam_plus_plus(
                case["activations"], case["gradients"], case["score"], size
            )
            assert_close(cam, case["map"], "cam_map")
            seen += 1
    assert seen


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (3, 5, 4, 6), (1, 17, 7, 7)])
def test_against_loops(shape):
    activations, gradients = torch.rand(shape), torch.randn(shape).abs()
    score = torch.randn(shape[0])
    cam = ops.grad_cam_plus_plus(activations, gradients, score, shape[2:])
    for n in range(shape[0]):
        expected = looped_map(activations[n], gradients[n], score[n].item(), 1e-7)
        assert_close(cam[n, 0], expected, "cam_map")


def test_score_scales_the_map_within_eps_only():
    activations, gradients = torch.rand(2, 3, 4, 5, 5).double()
    maps = [
        ops.grad_cam_plus_plus(activations, gradients, torch.full((3,), s).double(), (9, 9))
        for s in (5.0, 20.0, 49.0, 51.0, 1e4, math.inf)
    ]
    for cam in maps[1:]:
        assert_close(cam, maps[0], "cam_map")
    faint = ops.grad_cam_plus_plus(activations, gradients, torch.full((3,), -20.0).double(), (9, 9))
    assert faint.max() < 0.5


def test_large_scores_stay_finite_in_float32():
    leaf = torch.rand(2, 3, 4, 4, requires_grad=True)
    cam = ops.grad_cam_plus_plus(leaf, torch.rand(2, 3, 4, 4), torch.tensor([90.0, 500.0]), (8, 8))
    cam.sum().backward()
    assert_close(cam.amax((1, 2, 3)), [1.0, 1.0], "cam_map")
    assert leaf.grad.isfinite().all()


def test_zero_gradient_and_flat_map_are_zero():
    leaf = torch.rand(2, 3, 4, 4, requires_grad=True)
    for activations, gradients, eps in (
        (leaf, torch.zeros(2, 3, 4, 4), 0.0),
        (leaf * 0 + 0.3, torch.ones(2, 3, 4, 4), 1e-7),
    ):
        cam = ops.grad_cam_plus_plus(activations, gradients, torch.ones(2), (8, 8), eps=eps)
        (grad,) = torch.autograd.grad(cam.sum(), leaf)
        assert not cam.any()
        assert not grad.any()


def test_gradient_in_activations_holds_the_weights_constant():
    leaf = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gradients = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    score = torch.rand(2, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 1, 5, 5, dtype=torch.float64)

    def loss(activations):
        cam = ops.grad_cam_plus_plus(activations, gradients, score, (5, 5))
        return (cam * target).sum()

    (grad,) = torch.autograd.grad(loss(leaf), leaf)
    squared, third = gradients**2, (leaf * gradients**3).sum((2, 3), keepdim=True)
    weights = squared / (2 * squared + third + 1e-7) * gradients * score.exp()[:, None, None, None]
    weights = weights.sum((2, 3), keepdim=True).detach()
    # Positive weights: Grad-CAM with these as its constant gradients has the same map.
    same = ops.grad_cam(leaf, weights.expand_as(leaf), (5, 5), eps=1e-7)
    (expected,) = torch.autograd.grad((same * target).sum(), leaf)
    assert_close(grad, expected, "float64")
    assert gradients.grad is None
    assert score.grad is None


@pytest.mark.parametrize("where", ["activations", "gradients", "score"])
def test_nan_fills_the_map_of_its_image_only(where):
    tensors = {
        "activations": torch.rand(2, 3, 4, 4),
        "gradients": torch.rand(2, 3, 4, 4),
        "score": torch.rand(2),
    }
    tensors[where].view(2, -1)[1, 0] = float("nan")
    cam = ops.grad_cam_plus_plus(**tensors, size=(6, 6))
    assert cam[1].isnan().all()
    assert cam[0].isfinite().all()


def test_strides_and_empty_batch():
    activations, gradients = torch.rand(2, 2, 6, 5, 8)
    score = torch.rand(2)
    expected = ops.grad_cam_plus_plus(activations, gradients, score, (9, 9))
    channels_last = activations.to(memory_format=torch.channels_last)
    actual = ops.grad_cam_plus_plus(channels_last, gradients, score, (9, 9))
    assert_close(actual, expected, "cam_map")
    empty = torch.empty(0, 3, 4, 4)
    assert ops.grad_cam_plus_plus(empty, empty, torch.empty(0), (8, 9)).shape == (0, 1, 8, 9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"score": torch.rand(3)}, ValueError, r"score must have shape \(B,\) = \(2,\), got \(3"),
        ({"score": torch.ones(2).long()}, TypeError, "score must be float16"),
        ({"score": torch.rand(2, device="meta")}, ValueError, "score is on meta"),
        ({"gradients": torch.rand(2, 3, 4, 5)}, ValueError, "gradients must have shape"),
        ({"size": "88"}, TypeError, "size must be a pair"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "activations": torch.rand(2, 3, 4, 4),
        "gradients": torch.rand(2, 3, 4, 4),
        "score": torch.rand(2),
        "size": (8, 8),
    }
    with pytest.raises(error, match=message):
        ops.grad_cam_plus_plus(**(arguments | change))
