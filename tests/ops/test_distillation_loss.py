"""Distillation losses: golden values and gradients, a float64 oracle, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.ops.backends import require
from tests.tolerances import assert_close


def random_logits(shape, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator) * spread
    labels = torch.randint(shape[1], shape[:1], generator=generator)
    return student, teacher, labels


def test_golden(golden):
    for _, case in golden_cases(golden("distillation")):
        student = case["student"].requires_grad_()
        temperature, alpha, tau = (round(case[k], 6) for k in ("temperature", "alpha", "tau"))
        kl, ce, difficulty = ops.distillation_loss(
            student,
            case["teacher"],
            case["labels"],
            temperature=temperature,
            alpha=alpha,
            difficulty_threshold=tau,
        )
        assert_close(difficulty, case["difficulty"], "probability")
        assert torch.equal(difficulty < tau, case["mask"])
        batch, classes = student.shape
        # Both published values carry a constant: ln C per hard sample, and at most 1e-7 per factor.
        hard = (~case["mask"]).sum().item() / batch
        assert_close(ce, case["ce"] - hard * math.log(classes), "cross_entropy")
        assert_close(kl, case["kl"], "kl_per_factor", factor=alpha * temperature**2)
        (grad_kl,) = torch.autograd.grad(kl, student, retain_graph=True)
        (grad_ce,) = torch.autograd.grad(ce, student)
        assert_close(grad_kl, case["grad_kl"], "logit_gradient", factor=alpha)
        assert_close(grad_ce, case["grad_ce"], "logit_gradient")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(-1e3, 1e3), st.integers(0, 2**31))
def test_shifts_bounds_and_order(batch, classes, shift, seed):
    student, teacher, labels = (
        t.double() if t.is_floating_point() else t for t in random_logits((batch, classes), seed)
    )
    kl, ce, difficulty = ops.distillation_loss(student, teacher, labels)
    shifted = ops.distillation_loss(student + shift, teacher - shift, labels)
    for actual, expected in zip(shifted, (kl, ce, difficulty), strict=True):
        assert_close(actual, expected, "float64", factor=1e4)
    assert kl >= -1e-9
    assert ce >= 0
    assert difficulty.min() >= 0
    assert difficulty.max() <= 1
    same = ops.distillation_loss(teacher, teacher, labels)[0]
    assert same == 0
    order = torch.randperm(batch)
    permuted = ops.distillation_loss(student[order], teacher[order], labels[order])
    assert_close(permuted[0], kl, "float64")
    assert torch.equal(permuted[2], difficulty[order])


def test_threshold_is_strict_and_selects():
    teacher = torch.zeros(3, 2)
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    at = ops.distillation_loss(student, teacher, labels, difficulty_threshold=0.5)
    assert torch.equal(at[2], torch.full((3,), 0.5))
    assert at[1] == 0
    above = ops.distillation_loss(student, teacher, labels, difficulty_threshold=0.5001)[1]
    assert_close(above, torch.nn.functional.cross_entropy(student, labels), "cross_entropy")

    teacher = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
    ce = ops.distillation_loss(student, teacher, labels)[1]
    ce.backward()
    easy = torch.nn.functional.cross_entropy(student[[0, 2]], labels[[0, 2]], reduction="sum") / 3
    assert_close(ce, easy, "cross_entropy")
    assert not student.grad[1].any()
    assert student.grad[[0, 2]].all()


def test_impossible_classes():
    student, teacher, labels = random_logits((4, 6))
    student.requires_grad_()
    teacher[:, 5] = -math.inf
    labels.clamp_(max=4)
    kl, ce, _ = ops.distillation_loss(student, teacher, labels)
    (kl + ce).backward()
    assert kl.isfinite()
    assert student.grad.isfinite().all()
    both = student.detach().clone()
    both[:, 5] = -math.inf
    reduced = ops.distillation_loss(both[:, :5], teacher[:, :5], labels)
    actual = ops.distillation_loss(both, teacher, labels)
    assert_close(actual[0], reduced[0], "kl_per_factor", factor=8000)
    teacher[:, 5] = 0
    assert ops.distillation_loss(both, teacher, labels)[0] == math.inf


def test_infinite_loss_of_a_hard_sample_is_left_out():
    student = torch.tensor([[-math.inf, 0.0], [1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-9.0, 0.0], [9.0, 0.0]])
    ce = ops.distillation_loss(student, teacher, torch.tensor([0, 0]))[1]
    ce.backward()
    assert ce.isfinite()
    assert student.grad.isfinite().all()


def test_extreme_logits_do_not_overflow():
    student = torch.tensor([[1e30, -1e30], [3e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1e30, -1e30], [0.0, 0.0]])
    values = ops.distillation_loss(student, teacher, torch.tensor([0, 1]), difficulty_threshold=2)
    (values[0] + values[1]).backward()
    assert all(v.isfinite().all() for v in values)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("which", [0, 1])
def test_nan_reaches_the_divergence(which):
    *logits, labels = random_logits((3, 4))
    logits[which][2, 1] = float("nan")
    kl, _, difficulty = ops.distillation_loss(*logits, labels)
    assert kl.isnan()
    assert difficulty.isnan().tolist() == [False, False, which == 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_logits": torch.rand(4)}, ValueError, r"student_logits must have shape \(B, C"),
        ({"teacher_logits": torch.rand(4, 6)}, ValueError, r"\(4, 5\), got \(4, 6\)"),
        ({"teacher_logits": torch.ones(4, 5).int()}, TypeError, "teacher_logits must be float16"),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be int64 class indices"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must have shape \(B,\) = \(4,\)"),
        ({"labels": torch.tensor([0, 1, 5, 2])}, ValueError, r"in \[0, 5\).*got 5 at index 2"),
        ({"labels": torch.tensor([0, -1, 3, 2])}, ValueError, r"in \[0, 5\).*got -1 at index 1"),
        ({"labels": [0, 1, 2, 3]}, TypeError, "labels must be a torch.Tensor, got list"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0"),
        ({"alpha": -1.0}, ValueError, "alpha must be at least 0"),
        ({"difficulty_threshold": None}, TypeError, "difficulty_threshold must be a number"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "student_logits": torch.rand(4, 5),
        "teacher_logits": torch.rand(4, 5),
        "labels": torch.tensor([0, 1, 2, 3]),
    }
    with pytest.raises(error, match=message):
        ops.distillation_loss(**(arguments | change))


def test_no_class():
    with pytest.raises(ValueError, match=r"student_logits has no class.*\(2, 0\)"):
        ops.distillation_loss(torch.empty(2, 0), torch.empty(2, 0), torch.zeros(2).long())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_logit_is_refused(backend):
    z = torch.randn(4, 1)
    labels = torch.zeros(4, dtype=torch.int64)
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"has one class.*both losses would be zero.*give two"):
            ops.distillation_loss(z, z + 1, labels)
        two, other = (torch.cat([torch.zeros_like(v), v], 1) for v in (z, z + 1))
        kl, ce, _ = ops.distillation_loss(two, other, labels, difficulty_threshold=2)
    assert kl > 0
    torch.testing.assert_close(ce, torch.nn.functional.softplus(z).mean(), atol=1e-5, rtol=1e-5)


def test_inference_computes_no_gradient():
    student, teacher, labels = random_logits((4, 5))
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.name())
            return func(*args, **(kwargs or {}))

    with Record():
        ops.distillation_loss(student, teacher, labels)
        with torch.no_grad():
            ops.distillation_loss(student.clone().requires_grad_(), teacher, labels)
    assert "synq_fast::distillation_loss" in calls
    assert "synq_fast::distillation_loss_with_gradient" not in calls


@settings(max_examples=30)
@given(st.integers(0, 6), st.integers(2, 70), st.floats(0.3, 40), st.floats(0, 50))
def test_any_shape_of_logits(batch, classes, temperature, spread):
    student, teacher = torch.randn(2, batch, classes) * spread
    labels = torch.randint(classes, (batch,))
    leaf = student.requires_grad_()
    kl, ce, difficulty = ops.distillation_loss(leaf, teacher, labels, temperature=temperature)
    assert kl >= -1e-3 * temperature**2
    assert ce >= 0
    assert ((difficulty >= 0) & (difficulty <= 1)).all()
    # Both gradients are differences of distributions.
    of_kl, of_ce = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (kl, ce))
    assert (of_kl.sum(1).abs() <= 1e-5 * 20 * max(temperature, 1)).all()
    assert (of_ce.sum(1).abs() <= 1e-5).all()
    same = ops.distillation_loss(teacher, teacher, labels, temperature=temperature)[0]
    assert same == 0


def test_labels_are_checked_by_the_op_itself():
    require("cpu")
    logits = torch.randn(3, 5)
    for label, index in ((5, 1), (-1, 2)):
        labels = torch.zeros(3, dtype=torch.int64)
        labels[index] = label
        for name in ("auto", "reference"):
            with (
                ops.backend(name),
                pytest.raises(ValueError, match=rf"got {label} at index {index}"),
            ):
                ops.distillation_loss(logits, logits, labels)


def test_a_sample_left_out_gets_no_gradient_from_the_cross_entropy():
    require("cpu")
    student = torch.tensor([[-torch.inf, 0.0, 1.0], [1.0, 0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[-9.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    ce = ops.distillation_loss(student, teacher, torch.tensor([0, 0]))[1]
    (gradient,) = torch.autograd.grad(ce, student)
    assert not gradient[0].any()
    assert gradient[1].all()
