"""The kernels of the losses: every backend and instruction set, accuracy, and determinism."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.logit_cases import CASES, check_losses, random_logits
from tests.ops.backends import BACKENDS, require
from tests.statistics_cases import SHAPES, check_gradient, exact, layouts, running
from tests.statistics_cases import check_losses as check_statistics


@pytest.fixture
def place(request):
    backend, device = request.param
    require(backend)
    with ops.backend(backend):
        yield device


every_backend = pytest.mark.parametrize(
    "place", [pytest.param(p.values, id=p.id, marks=p.marks) for p in BACKENDS], indirect=True
)


def distil(student, teacher, labels, **keywords):
    """Values, and the gradients that `check_losses` expects."""
    leaves = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    kl, ce, difficulty = ops.distillation_loss(*leaves, labels, **keywords)
    of_kl, of_teacher = torch.autograd.grad(kl, leaves, retain_graph=True)
    (of_ce,) = torch.autograd.grad(ce, leaves[0])
    return kl, ce, difficulty, of_kl, of_ce, of_teacher


@every_backend
@pytest.mark.parametrize("shape", [*CASES, (70, 1000)], ids=str)
def test_distillation(place, shape):
    inputs = random_logits(shape, torch.float32)
    keywords = {"temperature": 4.0, "alpha": 3.0, "difficulty_threshold": 0.9}
    actual = distil(*(value.to(place) for value in inputs), **keywords)
    check_losses(actual, *inputs, *keywords.values())


@every_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics(place, shape):
    for _, x in layouts(shape):
        mean, var = running(shape[1])
        leaf = x.detach().to(place).requires_grad_()
        losses = ops.bn_statistics_loss(leaf, mean.to(place), var.to(place))
        check_statistics(losses, x, mean, var)
        _, _, of_mean, of_var = exact(x, mean, var)
        for loss, expected in zip(losses, (of_mean, of_var), strict=True):
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            check_gradient(gradient, expected, torch.float32)


@every_backend
def test_incoming_gradients_scale(place):
    inputs = [value.to(place) for value in random_logits((5, 10), torch.float32)]
    leaf = inputs[0].detach().requires_grad_()
    kl, ce, _ = ops.distillation_loss(leaf, *inputs[1:])
    (both,) = torch.autograd.grad(2 * kl - 3 * ce, leaf)
    of_kl, of_ce = distil(*inputs)[3:5]
    torch.testing.assert_close(both, 2 * of_kl - 3 * of_ce)


@pytest.mark.parametrize("running_mean", [0.0, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_far_mean_costs_the_kernels_no_accuracy(running_mean, memory_format):
    require("cpu")
    x = (torch.randn(8, 4, 40, 40) + 1e4).to(memory_format=memory_format).requires_grad_()
    mean, var = torch.full((4,), running_mean), torch.full((4,), 0.5)
    with ops.backend("cpu"):
        losses = ops.bn_statistics_loss(x, mean, var)
        (gradient,) = torch.autograd.grad(losses[1], x)
    expected = exact(x, mean, var)
    for value, wanted in zip(losses, expected, strict=False):
        assert value.item() == pytest.approx(wanted.item(), rel=3e-6)
    assert (gradient - expected[3]).abs().max() < 3e-6 * expected[3].abs().max()


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 20), st.floats(-50, 50), st.booleans())
def test_any_shape_of_statistics(batch, channels, inner, offset, last):
    x = torch.randn(batch, channels, inner, 2) + offset
    if last:
        x = x.to(memory_format=torch.channels_last)
    mean, var = running(channels)
    losses = ops.bn_statistics_loss(x, mean, var)
    for value, wanted in zip(losses, exact(x, mean, var), strict=False):
        # A unit in the last place of x moves a mean, whose error is squared.
        slack = 4e-6 * (1 + abs(offset)) * wanted.sqrt().item()
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5, abs=slack + 1e-7)


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


def results(threads):
    torch.set_num_threads(threads)
    x = torch.randn(40, 48, 30, 30, generator=torch.Generator().manual_seed(0))
    student, teacher, labels = random_logits((64, 1000), torch.float32)
    mean, var = running(48)
    values = list(distil(student, teacher, labels))
    for layer in (x, x.to(memory_format=torch.channels_last)):
        leaf = layer.requires_grad_()
        losses = ops.bn_statistics_loss(leaf, mean, var)
        values += [*losses, *torch.autograd.grad(sum(losses), leaf)]
    return values


def test_results_do_not_depend_on_the_number_of_threads():
    require("cpu")
    before = torch.get_num_threads()
    try:
        for one, three in zip(results(1), results(3), strict=True):
            assert torch.equal(one, three)
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_have_the_type_of_their_input(dtype):
    student = torch.randn(4, 6).to(dtype).requires_grad_()
    teacher = torch.randn(4, 6, requires_grad=True)
    kl, ce, _ = ops.distillation_loss(student, teacher, torch.zeros(4, dtype=torch.int64))
    of_student, of_teacher = torch.autograd.grad(kl + ce, [student, teacher])
    assert (of_student.dtype, of_teacher.dtype) == (dtype, torch.float32)


def test_mean_of_a_network():
    inputs = [torch.randn(4, 3, 5, 5), torch.full((4, 8), torch.nan), torch.randn(2, 5, 4)]
    means, variances = zip(*(running(x.shape[1]) for x in inputs), strict=True)
    for backend in ("auto", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with ops.backend(backend):
            loss = ops.bn_statistics_losses(leaves, means, variances, [1.0, 0, 2.5])
        loss.backward()
        # A layer of weight 0 is not even read.
        assert leaves[1].grad is None
        total = 0.0
        for i, weight in ((0, 1.0), (2, 2.5)):
            mean_loss, var_loss, of_mean, of_var = exact(inputs[i], means[i], variances[i])
            total += weight / 3 * (mean_loss + var_loss).item()
            check_gradient(leaves[i].grad, weight / 3 * (of_mean + of_var), torch.float32)
        assert loss.item() == pytest.approx(total, rel=1e-5)
    plain = ops.bn_statistics_losses(inputs[::2], means[::2], variances[::2])
    ones = ops.bn_statistics_losses(inputs[::2], means[::2], variances[::2], [1, 1])
    assert torch.equal(plain, ones)
    assert ops.bn_statistics_losses(inputs[:1], means[:1], variances[:1], [0.0]) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": []}, ValueError, "inputs is empty"),
        ({"running_vars": [torch.ones(3)]}, ValueError, "running_vars must have one entry.*2, got"),
        ({"weights": [1.0]}, ValueError, "weights must have one entry per layer, 2, got 1"),
        ({"weights": [1.0, "2"]}, TypeError, r"weights\[1\] must be a number"),
        ({"weights": [1.0, float("nan")]}, ValueError, r"weights\[1\] must be finite"),
        ({"running_means": [torch.zeros(3), torch.zeros(2)]}, ValueError, r"\(C,\) = \(3,\)"),
        ({"inputs": [torch.rand(2, 3), torch.empty(0, 3)]}, ValueError, "x is empty"),
    ],
)
def test_bad_layers(change, error, message):
    arguments = {
        "inputs": [torch.rand(2, 3), torch.rand(4, 3)],
        "running_means": [torch.zeros(3)] * 2,
        "running_vars": [torch.ones(3)] * 2,
        "weights": None,
    }
    with pytest.raises(error, match=message):
        ops.bn_statistics_losses(**(arguments | change))
