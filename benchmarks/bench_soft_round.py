"""Soft rounding of weights with its penalty, forward and backward, float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

BITS = 4
# A layer of ResNet-18's first and of its last stage.
LAYERS = [(64, 64, 3, 3), (512, 512, 3, 3)]
SHAPES = harness.sizes(cpu=LAYERS, cuda=[*LAYERS, (4096, 4096)])


@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_soft_round(
    shape: tuple[int, ...],
    layout: str,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against the eager and the compiled reference, and a copy of as many bytes."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, *shape, generator=generator)
    v, gradient = (harness.laid(values, layout, torch.float32) for values in drawn)
    v.requires_grad_()
    base = harness.laid(torch.randint(-8, 8, shape, generator=generator), layout, torch.int8)
    scale = torch.full(shape[:1], 3.0, device=harness.DEVICE, requires_grad=True)
    zero_point = torch.zeros(shape[0], device=harness.DEVICE)
    # In the middle of the usual course from 20 to 2; a tensor, as steps that are recorded need it.
    exponent = torch.tensor(10.0, device=harness.DEVICE)
    weight = torch.tensor(0.01, device=harness.DEVICE)
    rest = base, scale, zero_point, BITS, exponent

    def step(call: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
        w, penalty = call()
        return [w, penalty, *torch.autograd.grad([w, penalty], [v, scale], [gradient, weight])]

    def of(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        return step(partial(function, v, *rest))

    expected = of(reference.soft_round)
    ours, omitted = columns.our_columns(of, ops.soft_round)
    for name, call in ours.items():
        for mine, theirs in zip(call(), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4, msg=f"{name} differs")

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: of(reference.soft_round)
    compiled, reason = columns.compiled_column(reference.soft_round, v, *rest, own=True)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = lambda: step(compiled)
    # v and its codes in and w out; then these, the gradient of w in, and that of v out.
    bytes_moved = 5 * v.nbytes + 2 * base.nbytes
    rows["copy of as many bytes"] = columns.copy_column(bytes_moved)
    compare(
        f"{'x'.join(map(str, shape))} {BITS} bits, forward and backward"
        + harness.kind(layout, torch.float32),
        rows,
        ours=next(iter(ours), None),
        copy="copy of as many bytes",
        bytes_moved=bytes_moved,
        omitted=omitted,
    )
