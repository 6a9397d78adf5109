"""What the inter-head similarity means; the conformance suite compares the backends."""

import numpy as np
import pytest
import torch

from synq_fast import ops
from synq_fast.testing.cases.inter_head_similarity_loss import make_logits
from tests.ops.backends import device  # noqa: F401  (a fixture)


def loss_of_pairs(logits):
    """By loops over images, queries and pairs, in float64."""
    terms = []
    for image in logits.double().numpy():
        for query in range(image.shape[1]):
            rows = image[:, query]
            low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
            rows = (rows - low) / (high - low + 1e-8)
            for one in rows:
                for other in rows:
                    m, n = one.mean(), other.mean()
                    c = ((one - m) * (other - n)).mean()
                    s = (2 * m * n + 1e-4) / (m * m + n * n + 1e-4)
                    s *= (2 * c + 9e-4) / (one.var() + other.var() + 9e-4)
                    terms.append(1 - s * s)
    return np.mean(terms)


def test_values_by_loops(device):  # noqa: F811
    logits = make_logits(2, 5, 3, 11)
    loss = ops.inter_head_similarity_loss(logits.to(device))
    assert loss.item() == pytest.approx(loss_of_pairs(logits), rel=1e-5)


def test_the_gradient_by_differences(device):  # noqa: F811
    logits = make_logits(1, 3, 2, 5)
    leaf = logits.to(device).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.inter_head_similarity_loss(leaf), leaf)
    flat, step = logits.detach().double().flatten(), 1e-5
    for i in range(flat.numel()):
        ends = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[i] += sign * step
            ends.append(loss_of_pairs(moved.view_as(logits)))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert gradient.flatten()[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_what_makes_it_zero(device):  # noqa: F811
    loss = ops.inter_head_similarity_loss
    logits = make_logits(2, 4, 3, 9).to(device)
    assert loss(logits[:, :1]).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits[:, :1].expand_as(logits)).item() == pytest.approx(0, abs=1e-5)
    # Scale and offset of a head's logits are nothing to it.
    scale = torch.tensor([1.0, 3.0, 0.5, 10.0], device=device).view(4, 1, 1)
    shifted = logits[:, :1] * scale + 3 * scale
    assert loss(shifted).item() == pytest.approx(0, abs=1e-5)
    assert 0.1 < loss(logits).item() < 1
    # A row that is its own contrary turned around has its mean: only the sign of S changes.
    row = torch.linspace(-1, 1, 9, device=device)
    contrary = torch.stack([row, -row]).view(1, 2, 1, 9)
    assert loss(contrary).item() < 0.05


def test_the_order_of_heads_is_nothing_to_it(device):  # noqa: F811
    logits = make_logits(2, 5, 3, 20).to(device)
    expected = ops.inter_head_similarity_loss(logits).item()
    assert ops.inter_head_similarity_loss(logits.flip(1)).item() == pytest.approx(expected)
    assert ops.inter_head_similarity_loss(logits.flip(3)).item() == pytest.approx(expected)


def test_a_row_without_a_range_has_a_finite_gradient(device):  # noqa: F811
    logits = make_logits(1, 3, 2, 7).to(device)
    logits[:, 1] = 2.0
    leaf = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.inter_head_similarity_loss(leaf), leaf)
    assert gradient.isfinite().all()
    with ops.backend("reference"):
        (expected,) = torch.autograd.grad(ops.inter_head_similarity_loss(leaf), leaf)
    torch.testing.assert_close(gradient[:, [0, 2]], expected[:, [0, 2]], rtol=1e-4, atol=1e-6)


def test_windows_are_images(device):  # noqa: F811
    windows = make_logits(6, 3, 4, 4).to(device)
    images = [ops.inter_head_similarity_loss(window[None]).item() for window in windows]
    whole = ops.inter_head_similarity_loss(windows)
    assert whole.item() == pytest.approx(np.mean(images), rel=1e-5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_arguments_are_checked(backend):
    with ops.backend(backend):
        loss = ops.inter_head_similarity_loss
        with pytest.raises(ValueError, match=r"logits must have shape \(B, H, N, M\), got \(3, 4"):
            loss(torch.zeros(3, 4, 5))
        for shape in ((2, 0, 3, 4), (2, 3, 4, 0)):
            with pytest.raises(ValueError, match="logits must have at least one head and one key"):
                loss(torch.zeros(shape))
        with pytest.raises(ValueError, match="logits must have at most 64 heads, got 65 in"):
            loss(torch.zeros(1, 65, 2, 2))
        with pytest.raises(TypeError, match="logits must be float16, bfloat16, float32 or float64"):
            loss(torch.zeros(1, 1, 2, 2).int())
        with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor, got list"):
            loss([0.0])
