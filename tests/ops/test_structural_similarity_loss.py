"""What the structural similarity means; the conformance suite compares the backends."""

import numpy as np
import pytest
import torch

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)


def heads(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator).unbind()


def test_one_channel_by_hand(device):  # noqa: F811
    """Deviations (-1, 0, 1) of the teacher and (-1, 1, 0) of the student, each of variance 2/3."""
    teacher = torch.tensor([1.0, 2.0, 3.0], device=device).view(1, 1, 3, 1)
    student = torch.tensor([10.0, 12.0, 11.0], device=device).view(1, 1, 3, 1)
    expected = 1 - (2 / 3 + 9e-4) / (4 / 3 + 9e-4)
    loss = ops.structural_similarity_loss(teacher, student)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_by_numpy(device):  # noqa: F811
    teacher, student = heads(2, 3, 7, 5)
    leaf = student.to(device).requires_grad_()
    loss = ops.structural_similarity_loss(teacher.to(device), leaf)
    (gradient,) = torch.autograd.grad(3 * loss, leaf)
    t, q = (x.detach().double().numpy() for x in (teacher, student))
    t, q = (x - x.mean(2, keepdims=True) for x in (t, q))
    d = (t**2).mean(2, keepdims=True) + (q**2).mean(2, keepdims=True) + 9e-4
    s = (2 * (t * q).mean(2, keepdims=True) + 9e-4) / d
    assert loss.item() == pytest.approx(1 - s.mean(), rel=1e-6)
    expected = -3 * (2 * t - 2 * s * q) / (7 * d * 2 * 3 * 5)
    np.testing.assert_allclose(gradient.cpu().numpy(), expected, rtol=1e-4, atol=1e-7)


def test_its_range(device):  # noqa: F811
    teacher, _ = (x.to(device) for x in heads(2, 3, 9, 4))
    loss = ops.structural_similarity_loss
    assert loss(teacher, teacher + 5).item() == pytest.approx(0, abs=1e-5)
    assert 1.99 < loss(teacher, -teacher).item() <= 2
    flat = torch.ones_like(teacher)
    assert loss(flat, 3 * flat).item() == 0
    assert 0.99 < loss(flat, teacher).item() <= 1


def test_whole_weights_are_repeated_positions(device):  # noqa: F811
    teacher, student = heads(2, 3, 4, 5)
    counts = torch.tensor([1, 3, 0, 2])
    leaf = student.to(device).requires_grad_()
    weighted = ops.structural_similarity_loss(teacher.to(device), leaf, counts.float().to(device))
    repeated = student.repeat_interleave(counts, 2).to(device).requires_grad_()
    plain = ops.structural_similarity_loss(
        teacher.repeat_interleave(counts, 2).to(device), repeated
    )
    assert weighted.item() == pytest.approx(plain.item(), rel=1e-5)
    (mine,), (theirs,) = torch.autograd.grad(weighted, leaf), torch.autograd.grad(plain, repeated)
    parts = theirs.split(counts.tolist(), 2)
    summed = torch.stack([part.sum(2) for part in parts], 2)
    torch.testing.assert_close(mine, summed, rtol=1e-4, atol=1e-7)
    for factor in (0.5, 100.0):
        scaled = ops.structural_similarity_loss(
            teacher.to(device), leaf, factor * counts.float().to(device)
        )
        assert scaled.item() == pytest.approx(weighted.item(), rel=1e-5)


def test_the_teacher_and_the_weights_are_constants(device):  # noqa: F811
    teacher, student = (x.to(device).requires_grad_() for x in heads(1, 2, 4, 3))
    weight = torch.ones(4, device=device, requires_grad=True)
    ops.structural_similarity_loss(teacher, student, weight).backward()
    assert teacher.grad is None and weight.grad is None
    assert student.grad.abs().sum() > 0
    assert not ops.structural_similarity_loss(teacher, student.detach()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_types_meet_in_the_wider_one(device, dtype):  # noqa: F811
    teacher, student = (x.to(device) for x in heads(2, 2, 6, 5))
    student = student.to(dtype)
    mixed = ops.structural_similarity_loss(teacher, student.requires_grad_())
    wide = ops.structural_similarity_loss(teacher, student.detach().float())
    assert mixed.item() == pytest.approx(wide.item(), rel=1e-6)
    mixed.backward()
    assert student.grad.dtype == dtype and student.grad.isfinite().all()
    double = ops.structural_similarity_loss(teacher.double(), student.detach())
    assert double.dtype == torch.float64


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_arguments_are_checked(backend):
    x = torch.zeros(2, 3, 4, 5)
    with ops.backend(backend):
        loss = ops.structural_similarity_loss
        with pytest.raises(ValueError, match=r"student must have shape \(B, H, N, d\), got \(3, "):
            loss(x[0], x[0])
        with pytest.raises(ValueError, match=r"teacher must have shape that of student = \(2, 3, "):
            loss(x[:1], x)
        with pytest.raises(ValueError, match=r"student has no position, its shape is \(2, 3, 0, 5"):
            loss(x[:, :, :0], x[:, :, :0])
        with pytest.raises(TypeError, match="student must be float16, bfloat16, float32 or float6"):
            loss(x, x.int())
        with pytest.raises(TypeError, match=r"teacher must be a torch\.Tensor, got list"):
            loss([0.0], x)
        with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor, got int"):
            loss(x, x, 2)
        for shape in ((3,), (2, 2, 4), (1, 2, 3, 4)):
            with pytest.raises(ValueError, match=r"weight must broadcast to \(B, H, N\) = \(2, 3"):
                loss(x, x, torch.ones(shape))
