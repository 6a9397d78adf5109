"""Grad-CAM++: an oracle written with loops, the published variant, zero denominators, gradients."""

import math

import numpy as np
import pytest
import torch

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.tolerances import assert_close


def looped_map(activations, gradients):
    """The map of one image at the size of its activations, eq. 19 in float64 with loops."""
    a, g = activations.double().numpy(), gradients.double().numpy()
    channels, height, width = a.shape
    total = np.zeros((height, width))
    for c in range(channels):
        weight = 0.0
        for i in range(height):
            for j in range(width):
                numerator = g[c, i, j] ** 2
                denominator = 2 * g[c, i, j] ** 2 + a[c].sum() * g[c, i, j] ** 3
                if denominator == 0:
                    denominator = 1
                weight += numerator / denominator * max(g[c, i, j], 0)
        total += weight * a[c]
    total = np.maximum(total, 0)
    return (total - total.min()) / (total.max() - total.min())


def published_map(activations, gradients, score, size):
    """The map of the published SynQ code, which sums A g^3 and adds an absolute eps."""
    a, g = activations.double(), gradients.double()
    third = (a * g**3).sum((2, 3), keepdim=True)
    alpha = g**2 / (2 * g**2 + third + 1e-7)
    weights = (alpha * (score.double().exp()[:, None, None, None] * g).relu()).sum((2, 3))
    return ops.grad_cam(a, weights[:, :, None, None].expand_as(a), size, clamp=None, eps=1e-7)


def test_the_published_code_is_not_the_paper(golden):
    seen = 0
    for _, case in golden_cases(golden("grad_cam")):
        if case["kind"] == "grad_cam_pp":
            inputs = case["activations"], case["gradients"], case["score"]
            size = tuple(case["size"].tolist())
            assert_close(published_map(*inputs, size), case["map"], "cam_map")
            cam = ops.grad_cam_plus_plus(*inputs, size)
            assert (cam - case["map"]).abs().max() > 0.01
            small = inputs[0].shape[2:]
            cam = ops.grad_cam_plus_plus(*inputs, small)
            for n in range(len(cam)):
                assert_close(cam[n, 0], looped_map(inputs[0][n], inputs[1][n]), "cam_map")
            seen += 1
    assert seen


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (3, 5, 4, 6), (1, 17, 7, 7)])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8])
def test_against_loops(shape, scale):
    """Squares and cubes of such gradients are not numbers of float32."""
    activations, gradients = torch.rand(shape), torch.randn(shape) * scale
    cam = ops.grad_cam_plus_plus(activations, gradients, torch.randn(shape[0]), shape[2:])
    for n in range(shape[0]):
        assert_close(cam[n, 0], looped_map(activations[n], gradients[n]), "cam_map")


def test_by_hand():
    activations = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[0.0, 0.0], [3.0, 1.0]]]])
    gradients = torch.tensor([[[[1.0, 0.0], [-1.0, 0.5]], [[0.25, 0.0], [0.0, 0.0]]]])
    # Both sums of A are 4: weights 1 / 6 + 0.5 / 4 and 0.25 / 3.
    first, second = 7 / 24, 2 / 24
    total = torch.tensor([[first, 2 * first], [3 * second, first + second]]).double()
    expected = (total - total.min()) / (total.max() - total.min())
    cam = ops.grad_cam_plus_plus(activations, gradients, torch.zeros(1), (2, 2))
    assert_close(cam[0, 0], expected, "cam_map")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("eps", "weight"), [(0.0, 17.0), (0.05, 17.0), (0.1, 1.0)])
def test_a_denominator_near_zero(dtype, eps, weight):
    """Here g is 1 and the denominator 1 / 16 unless eps makes it one."""
    activations = torch.tensor([[[[-2.9375, 1.0]], [[32.0, 0.0]]]], dtype=dtype)
    gradients = torch.tensor([[[[1.0, 0.0]], [[0.0, 4.0]]]], dtype=dtype)
    cam = ops.grad_cam_plus_plus(activations, gradients, torch.zeros(1), (1, 2), eps=eps)
    # The first channel's weight is 16 or 1, the second's 4 / (2 + 128).
    first = 16.0 if weight > 1 else 1.0
    total = torch.tensor([-2.9375 * first + 32 * 4 / 130, first]).relu().double()
    assert_close(cam[0, 0, 0], (total - total.min()) / (total.max() - total.min()), "cam_map")


def test_the_score_drops_out():
    activations, gradients = torch.rand(2, 3, 4, 5, 5)
    maps = [
        ops.grad_cam_plus_plus(activations, gradients, torch.full((3,), s), (9, 9))
        for s in (0.0, -300.0, 50.0, 1e4, math.inf, -math.inf)
    ]
    assert maps[0].max() == 1
    for cam in maps[1:]:
        assert torch.equal(cam, maps[0])


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
    squared, total = gradients**2, leaf.sum((2, 3), keepdim=True)
    weights = squared / (2 * squared + total * gradients**3) * gradients
    weights = weights.sum((2, 3), keepdim=True).detach()
    # Positive weights: Grad-CAM with these as its constant gradients has the same map.
    same = ops.grad_cam(leaf, weights.expand_as(leaf), (5, 5), eps=0.0)
    (expected,) = torch.autograd.grad((same * target).sum(), leaf)
    assert_close(grad, expected, "float64")
    assert gradients.grad is None
    assert score.grad is None


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
