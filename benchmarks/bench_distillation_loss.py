"""Distillation losses on logits, forward and backward to the student."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops, reference

from . import columns, harness

TEMPERATURE, ALPHA = 20.0, 20.0
LABEL_WEIGHT = 5.0
# ImageNet's batch of the published step is bound by the cost of calls; the last by arithmetic.
BATCHES = [(16, 1000), (256, 10), (256, 100), (256, 1000)]
SHAPES = harness.sizes(cpu=BATCHES, cuda=[*BATCHES, (16384, 1000)])


def _aten(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What a trainer writes: kl_div and cross_entropy, without the choice by difficulty."""
    log_q = functional.log_softmax(student / TEMPERATURE, 1)
    log_p = functional.log_softmax(teacher / TEMPERATURE, 1)
    kl = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return ALPHA * TEMPERATURE**2 * kl, functional.cross_entropy(student, labels)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward_backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_distillation_loss(
    shape: tuple[int, int],
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager, compiled, kl_div with cross_entropy, and a copy of both logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, *shape, generator=generator)).to(harness.DEVICE)
    labels = torch.randint(shape[1], shape[:1], generator=generator).to(harness.DEVICE)
    # Half of the samples are easy.
    teacher[torch.arange(shape[0])[::2], labels[::2]] += 15
    student, teacher = student.to(dtype), teacher.to(dtype)
    both = torch.stack([student, teacher])
    student.requires_grad_(backward)

    def step(losses: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        kl, ce, *_ = losses(student, teacher, labels)
        total = kl + LABEL_WEIGHT * ce
        return torch.autograd.grad(total, student)[0] if backward else total

    ours, omitted = columns.our_columns(step, ops.distillation_loss)
    expected = step(reference.distillation_loss)
    relative = 1e-5 if dtype == torch.float32 else 1e-2
    for name, call in ours.items():
        torch.testing.assert_close(call(), expected, rtol=relative, atol=5e-3, msg=name)
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.distillation_loss)
    # The compiled part is the loss: its backward is compiled with it.
    torch.compiler.reset()
    compiled, reason = columns.compiled_column(
        reference.distillation_loss, student, teacher, labels, own=True
    )
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        whole = compiled
        rows["reference, torch.compile"] = lambda: step(lambda *_: whole())
    rows["aten kl_div, cross_entropy"] = lambda: step(_aten)
    rows["clone of both logits"] = both.clone
    # Both logits in; with a gradient, that of the student out.
    moved = student.nbytes * (3 if backward else 2)
    compare(
        f"{'x'.join(map(str, shape))} {'forward and backward' if backward else 'forward'}"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone of both logits",
        bytes_moved=moved,
        elements=math.prod(shape),
        omitted=omitted,
        rounds=25,
        calls=20,
        warmup=5,
    )
