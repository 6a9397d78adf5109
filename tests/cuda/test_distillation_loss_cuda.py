"""The distillation losses on a GPU, CUDA C++ and Triton, against float64."""

import pytest
import torch

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.logit_cases import CASES, DTYPES, check_losses, random_logits
from tests.recording import recorded

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def run(student, teacher, labels, temperature=20.0, alpha=20.0, threshold=0.5):
    student = student.detach().cuda().requires_grad_()
    teacher = teacher.detach().cuda().requires_grad_()
    kl, ce, difficulty = ops.distillation_loss(
        student, teacher, labels.cuda(),
        temperature=temperature, alpha=alpha, difficulty_threshold=threshold,
    )  # fmt: skip
    of_kl, of_teacher = torch.autograd.grad(kl, [student, teacher], retain_graph=True)
    (of_ce,) = torch.autograd.grad(ce, student)
    return kl, ce, difficulty, of_kl, of_ce, of_teacher


@pytest.mark.parametrize("shape", [*CASES, (256, 1000), (4, 100_003)], ids=str)
def test_against_float64(chosen, shape) -> None:
    inputs = *random_logits(shape, torch.float32), 4.0, 3.0, 0.9
    check_losses(run(*inputs), *inputs)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(chosen, dtype) -> None:
    student, teacher, labels = random_logits((16, 1000), dtype)
    actual = run(student, teacher, labels)
    expected = run(student.float(), teacher.float(), labels)
    for value, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(value.float(), wanted, rtol=8e-3, atol=1e-5)
    mixed = run(student, teacher.float(), labels)
    torch.testing.assert_close(mixed[:3], expected[:3])


def test_golden_values(chosen, golden) -> None:
    for _, case in golden_cases(golden("distillation")):
        constants = [round(case[key], 6) for key in ("temperature", "alpha", "tau")]
        inputs = case["student"], case["teacher"], case["labels"], *constants
        check_losses(run(*inputs), *inputs)


def test_a_label_out_of_bounds_gives_nan(chosen) -> None:
    student, teacher, _ = random_logits((3, 5), torch.float32)
    _, ce, difficulty, *_ = run(student, teacher, torch.tensor([0, 5, -1]))
    assert ce.isnan()
    assert difficulty.isnan().tolist() == [False, True, True]


def test_every_run_gives_the_same_bits(chosen) -> None:
    inputs = random_logits((300, 1000), torch.float32)
    first = run(*inputs)
    for _ in range(5):
        for mine, theirs in zip(run(*inputs), first, strict=True):
            assert torch.equal(mine, theirs)


def test_capture_in_a_cuda_graph(chosen) -> None:
    student, teacher, labels = (value.cuda() for value in random_logits((64, 100), torch.float32))
    student.requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        kl, ce, difficulty = ops.distillation_loss(student, teacher, labels)
        return kl, ce, difficulty, *torch.autograd.grad(kl + 5 * ce, student)

    graph, captured = recorded(step)
    teacher.copy_(torch.randn_like(teacher))
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert torch.equal(mine, theirs)
