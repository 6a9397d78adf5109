"""Structural similarity of heads, forward and with the student's gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

# A block of DeiT-tiny and of ViT-base at MimiQ's batch of 16, and a stage of Swin-tiny's windows.
HEADS = [(16, 3, 196, 64), (16, 12, 196, 64), (64, 6, 49, 32)]
SHAPES = harness.sizes(cpu=HEADS, cuda=[*HEADS, (256, 12, 196, 64)])

Function = Callable[[Tensor, Tensor], Tensor]


def _centred(teacher: Tensor, student: Tensor) -> Tensor:
    """As a method's code writes it: variances and a covariance of transposed channels."""
    t, q = teacher.transpose(-2, -1), student.transpose(-2, -1)
    covariance = ((t - t.mean(-1, keepdim=True)) * (q - q.mean(-1, keepdim=True))).mean(-1)
    variances = t.var(-1, correction=0) + q.var(-1, correction=0)
    return 1 - ((2 * covariance + 9e-4) / (variances + 9e-4)).mean()


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with_backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_structural_similarity_loss(
    shape: tuple[int, ...],
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against the reference, eager and compiled, the eager expression and a copy."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(shape, generator=generator).to(harness.DEVICE)
    student = teacher + torch.randn(shape, generator=generator).to(harness.DEVICE)
    teacher, student = teacher.to(dtype), student.to(dtype)
    student.requires_grad_(backward)

    def step(function: Function) -> Tensor:
        loss = function(teacher, student)
        return torch.autograd.grad(loss, student)[0] if backward else loss

    with torch.no_grad():
        wide = student.double().requires_grad_(backward)
    expected = reference.structural_similarity_loss(teacher.double(), wide)
    if backward:
        (expected,) = torch.autograd.grad(expected, wide)
    ours, omitted = columns.our_columns(step, ops.structural_similarity_loss)
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.structural_similarity_loss)
    rows["transposed, eager"] = lambda: step(_centred)
    for name, call in rows.items():
        distance = (call().double() - expected).norm() / expected.norm()
        # In half precision the expressions beside ours are off by their own roundings.
        limit = 1e-5 if dtype == torch.float32 else 1e-2 if name.startswith("ours") else 1.0
        assert distance < limit, f"{name} is {distance:.1e} from the reference in float64"
    compiled, reason = columns.compiled_column(
        reference.structural_similarity_loss, teacher, student, own=True
    )
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = lambda: step(lambda *_: compiled())
    rows["clone"] = student.detach().clone
    size = student.nbytes
    compare(
        f"{'with backward' if backward else 'forward'} {'x'.join(map(str, shape))}"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # Both are read, and by the backward once more; it writes the gradient.
        bytes_moved=2 * size + (3 * size if backward else 0),
        omitted=omitted,
    )
