"""The similarities of heads on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from tests.emulation.launching import (
    DTYPES,
    INT,
    LONG,
    POINTER,
    Launcher,
    differentiable,
    fields,
)


class Strides(ctypes.Structure):
    """HeadStrides of csrc/layout.h."""

    _fields_ = fields((LONG, "batch head row"))


class StructuralParams(ctypes.Structure):
    """StructuralSimilarityParams of csrc/structural_similarity_loss.h."""

    _fields_ = fields(
        (POINTER, "teacher student weight statistics value workspace gradient result"),
        (LONG, "batch heads positions channels"),
        (Strides, "teacher_strides student_strides result_strides weight_strides"),
        (INT, "dtype"),
    )


class InterHeadParams(ctypes.Structure):
    """InterHeadSimilarityParams of csrc/inter_head_similarity_loss.h."""

    _fields_ = fields(
        (POINTER, "logits value workspace gradient result"),
        (LONG, "batch heads queries keys"),
        (Strides, "strides result_strides"),
        (INT, "dtype"),
    )


class Laid:
    """A tensor's memory, shifted as the setting says, with gaps and order kept."""

    def __init__(self, launch: Launcher, x: torch.Tensor) -> None:
        x = x.detach()
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            x = x.contiguous()
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        self.memory = launch.input(x.as_strided((last + 1,), (1,)))
        self.strides = Strides(*x.stride()[:3])


def _number(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().reshape(1).clone()


class StructuralSimilarity:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def structural_similarity_loss(self, teacher: Any, student: Any, weight: Any = None) -> Any:
        batch, heads, positions, channels = student.shape
        if student.numel() == 0:
            return student.float().sum()
        numbers = {
            "batch": batch, "heads": heads, "positions": positions, "channels": channels,
            "dtype": DTYPES.index(student.dtype),
        }  # fmt: skip
        if weight is not None:
            expanded = weight.float().expand(student.shape[:-1])
            numbers["weight_strides"] = Strides(*expanded.stride())
        statistics = self.launch.output(torch.empty(batch, heads, 4, channels))

        def given(student: torch.Tensor) -> tuple[dict[str, Any], list[Any]]:
            kept = [Laid(self.launch, teacher), Laid(self.launch, student)]
            arguments = {
                "teacher": kept[0].memory, "student": kept[1].memory,
                "teacher_strides": kept[0].strides, "student_strides": kept[1].strides,
                "weight": None if weight is None else weight.float(), "statistics": statistics,
            }  # fmt: skip
            return {**numbers, **arguments}, kept

        def forward(student: torch.Tensor) -> Any:
            arguments, kept = given(student)
            value = torch.full((1,), float("nan"))
            self.launch(
                "forward", StructuralParams, value=value,
                workspace=("workspace", torch.float64), **arguments,
            )  # fmt: skip
            return value[0].clone(), (arguments, kept)

        def backward(kept: Any, gradient: torch.Tensor) -> Any:
            y = self.launch.output(torch.empty(student.shape, dtype=student.dtype))
            self.launch(
                "backward", StructuralParams, result=y, gradient=_number(gradient),
                result_strides=Strides(*y.stride()[:3]), **kept[0],
            )  # fmt: skip
            return (torch.empty_like(student.detach()).copy_(y),)

        return differentiable(forward, backward, student)


class InterHeadSimilarity:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def inter_head_similarity_loss(self, logits: Any) -> Any:
        if logits.numel() == 0:
            return logits.float().sum()
        numbers = dict(zip(("batch", "heads", "queries", "keys"), logits.shape, strict=True))
        laid = Laid(self.launch, logits)
        given = {
            **numbers, "logits": laid.memory, "strides": laid.strides,
            "dtype": DTYPES.index(logits.dtype),
        }  # fmt: skip

        def forward(logits: torch.Tensor) -> Any:
            value = torch.full((1,), float("nan"))
            self.launch(
                "forward", InterHeadParams, value=value,
                workspace=("workspace", torch.float64), **given,
            )  # fmt: skip
            return value[0].clone(), laid

        def backward(kept: Any, gradient: torch.Tensor) -> Any:
            y = self.launch.output(torch.empty(logits.shape, dtype=logits.dtype))
            self.launch(
                "backward", InterHeadParams, result=y, gradient=_number(gradient),
                result_strides=Strides(*y.stride()[:3]), **given,
            )  # fmt: skip
            return (torch.empty_like(logits.detach()).copy_(y),)

        return differentiable(forward, backward, logits)
