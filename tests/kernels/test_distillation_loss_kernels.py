"""The Triton kernels of the distillation losses, run by Triton's interpreter."""

import pytest
import torch

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.logit_cases import CASES, DTYPES, check_losses, random_logits

# NumPy, which the interpreter runs on, tells when infinities appear, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def run(student, teacher, labels, temperature, alpha, threshold):
    student = student.detach().clone().requires_grad_()
    teacher = teacher.detach().clone().requires_grad_()
    with ops.backend("triton"):
        kl, ce, difficulty = ops.distillation_loss(
            student, teacher, labels,
            temperature=temperature, alpha=alpha, difficulty_threshold=threshold,
        )  # fmt: skip
        of_kl, of_teacher = torch.autograd.grad(kl, [student, teacher], retain_graph=True)
        (of_ce,) = torch.autograd.grad(ce, student)
    return kl, ce, difficulty, of_kl.float(), of_ce.float(), of_teacher.float()


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_against_float64(shape) -> None:
    inputs = *random_logits(shape, torch.float32), 4.0, 3.0, 0.9
    check_losses(run(*inputs), *inputs)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(dtype) -> None:
    student, teacher, labels = random_logits((3, 10), dtype)
    actual = run(student, teacher, labels, 2.0, 1.0, 0.9)
    expected = run(student.float(), teacher.float(), labels, 2.0, 1.0, 0.9)
    for value, wanted in zip(actual[:3], expected[:3], strict=True):
        assert torch.equal(value, wanted)
    for value, wanted in zip(actual[3:], expected[3:], strict=True):
        torch.testing.assert_close(value, wanted.to(dtype).float(), rtol=8e-3, atol=1e-6)


def test_golden_values(golden) -> None:
    for _, case in list(golden_cases(golden("distillation")))[::4]:
        constants = [round(case[key], 6) for key in ("temperature", "alpha", "tau")]
        inputs = case["student"], case["teacher"], case["labels"], *constants
        check_losses(run(*inputs), *inputs)


def test_a_label_out_of_bounds_gives_nan() -> None:
    student, teacher, _ = random_logits((3, 5), torch.float32)
    with ops.backend("triton"):
        kl, ce, difficulty = ops.distillation_loss(student, teacher, torch.tensor([0, 5, -1]))
    assert kl.isfinite()
    assert ce.isnan()
    assert difficulty.isnan().tolist() == [False, True, True]


def test_empty_batch() -> None:
    student, labels = torch.empty(0, 5, requires_grad=True), torch.empty(0, dtype=torch.int64)
    with ops.backend("triton"):
        kl, ce, difficulty = ops.distillation_loss(student, torch.empty(0, 5), labels)
        (kl + ce).backward()
    assert (kl.item(), ce.item(), difficulty.shape, student.grad.shape) == (0, 0, (0,), (0, 5))


def test_direct_calls_and_opcheck() -> None:
    student, teacher, labels = random_logits((4, 6), torch.float32)
    constants = (4.0, 3.0, 0.9)
    expected = run(student, teacher, labels, *constants)
    library, leaf = torch.ops.synq_fast, student.clone().requires_grad_()
    kl, _, _ = library.distillation_loss.triton(leaf, teacher, labels, *constants)
    (gradient,) = torch.autograd.grad(kl, leaf)
    assert torch.equal(gradient, expected[3])
    torch.library.opcheck(library.distillation_loss.triton, (leaf, teacher, labels, *constants))
    torch.library.opcheck(
        library.distillation_loss_with_gradient.triton,
        (leaf, teacher, labels, *constants, True, False),
    )
    with ops.backend("triton"):
        kl = ops.distillation_loss(leaf, teacher, labels)[0]
        (gradient,) = torch.autograd.grad(kl, leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated once"):
            gradient.sum().backward()
