"""The CUDA C++ kernels of the distillation losses, run thread by thread on the CPU."""

import ctypes

import pytest
import torch

from synq_fast import reference
from tests.emulation.build import build, shifted
from tests.golden_cases import golden_cases
from tests.logit_cases import CASES, DTYPES, check_losses, random_logits


class Params(ctypes.Structure):
    """DistillationLossParams of csrc/distillation_loss.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("student", "teacher", "labels")),
        *((name, ctypes.c_void_p) for name in ("kl", "ce", "difficulty")),
        *((name, ctypes.c_void_p) for name in ("kl_gradient", "ce_gradient", "teacher_gradient")),
        ("row_losses", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "classes")),
        *((name, ctypes.c_float) for name in ("temperature", "alpha", "threshold")),
        ("dtype", ctypes.c_int32),
    ]


class GradientParams(ctypes.Structure):
    """DistillationGradientParams of csrc/distillation_loss.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("kl_scale", "ce_scale")),
        *((name, ctypes.c_void_p) for name in ("kl_gradient", "ce_gradient", "result")),
        ("elements", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("distillation_loss", tmp_path_factory)
    library.set_multiprocessors(1)
    return library


def losses(library, student, teacher, labels, temperature, alpha, threshold, shift=0):
    """Values, the gradients of both in the student's logits and of kl in the teacher's."""
    batch, classes = student.shape
    student, teacher = shifted(student, shift), shifted(teacher, shift)
    values, difficulty = torch.full((2,), float("nan")), torch.full((batch,), float("nan"))
    gradients = torch.full((3, batch, classes), float("nan"))
    rows = torch.full((2, batch), float("nan"), dtype=torch.float64)
    params = Params(
        student=student.data_ptr(), teacher=teacher.data_ptr(), labels=labels.data_ptr(),
        kl=values[0].data_ptr(), ce=values[1].data_ptr(), difficulty=difficulty.data_ptr(),
        kl_gradient=gradients[0].data_ptr(), ce_gradient=gradients[1].data_ptr(),
        teacher_gradient=gradients[2].data_ptr(), row_losses=rows.data_ptr(),
        batch=batch, classes=classes, temperature=temperature, alpha=alpha, threshold=threshold,
        dtype=DTYPES.index(student.dtype),
    )  # fmt: skip
    assert library.forward(ctypes.byref(params)) == 0
    return values[0], values[1], difficulty, *gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_against_float64(library, shape, shift, dtype) -> None:
    student, teacher, labels = random_logits(shape, dtype)
    check_losses(
        losses(library, student, teacher, labels, 4.0, 3.0, 0.9, shift),
        student, teacher, labels, 4.0, 3.0, 0.9,
    )  # fmt: skip


def test_golden_values(library, golden) -> None:
    for _, case in golden_cases(golden("distillation")):
        constants = [round(case[key], 6) for key in ("temperature", "alpha", "tau")]
        inputs = case["student"], case["teacher"], case["labels"]
        check_losses(losses(library, *inputs, *constants), *inputs, *constants)


def test_special_values(library) -> None:
    student = torch.tensor([[1e30, -1e30, 0.0], [-torch.inf, 0.0, 1.0], [1.0, torch.nan, 2.0]])
    teacher = torch.tensor([[1e30, -1e30, 0.0], [9.0, -torch.inf, 0.0], [0.0, 9.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    for rows in ([0], [1], [2], [0, 1, 2]):
        inputs = student[rows], teacher[rows], labels[rows]
        actual = losses(library, *inputs, 2.0, 1.0, 0.5)
        expected = reference.distillation_loss(
            *inputs, temperature=2.0, alpha=1.0, difficulty_threshold=0.5
        )
        for value, exact in zip(actual, expected, strict=False):
            torch.testing.assert_close(value, exact, equal_nan=True)


def test_a_label_out_of_bounds_gives_nan(library) -> None:
    student, teacher, _ = random_logits((3, 5), torch.float32)
    for label in (-1, 5):
        actual = losses(library, student, teacher, torch.tensor([0, label, 1]), 2.0, 1.0, 2.0)
        assert actual[0].isfinite()
        assert actual[1].isnan()
        assert actual[2].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("elements", [1, 7, 1024, 5000])
def test_backward(library, elements, dtype) -> None:
    gradients = torch.randn(2, elements)
    scales = torch.tensor([2.0, -3.0])
    for used in ((0,), (1,), (0, 1)):
        result = torch.full((elements,), float("nan"), dtype=dtype)
        params = GradientParams(
            result=result.data_ptr(), elements=elements, dtype=DTYPES.index(dtype)
        )
        for term in used:
            setattr(params, ("kl_scale", "ce_scale")[term], scales[term].data_ptr())
            setattr(params, ("kl_gradient", "ce_gradient")[term], gradients[term].data_ptr())
        assert library.backward(ctypes.byref(params)) == 0
        expected = sum(scales[term] * gradients[term] for term in used).to(dtype)
        torch.testing.assert_close(
            result, expected, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6
        )
