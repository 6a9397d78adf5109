"""The loss between class activation maps, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

# Activations, target map, grid of tokens.
NETWORKS = [
    ((16, 512, 7, 7), (224, 224), None),
    ((32, 2048, 7, 7), (224, 224), None),
    ((64, 64, 8, 8), (32, 32), None),
    ((16, 196, 384), (224, 224), (14, 14)),
]
CASES = harness.sizes(cpu=NETWORKS, cuda=[*NETWORKS, ((256, 2048, 7, 7), (224, 224), None)])


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.MEMORY_FORMATS)
@pytest.mark.parametrize(("shape", "size", "grid"), CASES, ids=str)
def bench_cam_alignment_loss(
    shape: tuple[int, ...],
    size: tuple[int, int],
    grid: tuple[int, int] | None,
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager and compiled, both with the gradient, and a copy of the same bytes."""
    generator = torch.Generator().manual_seed(0)
    a, g = (harness.laid(torch.rand(shape, generator=generator), layout, dtype) for _ in "ag")
    target = torch.rand(shape[0], 1, *size, generator=generator).to(harness.DEVICE)

    leaf = a.requires_grad_()

    def step(function: Callable[..., Tensor]) -> Tensor:
        return torch.autograd.grad(function(leaf, g, target, grid=grid), leaf)[0]

    ours, omitted = columns.our_columns(partial(step, ops.cam_alignment_loss))
    expected = step(reference.cam_alignment_loss)
    tolerance = (2e-4 if dtype == torch.float32 else 2e-2) * expected.abs().max().item()
    for name, call in ours.items():
        torch.testing.assert_close(call(), expected, atol=tolerance, rtol=0, msg=f"{name} differs")

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.cam_alignment_loss)
    # The compiled part is the loss: its backward is compiled with it.
    compiled, reason = columns.compiled_column(
        reference.cam_alignment_loss, leaf, g, target, grid=grid, own=True
    )
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        loss = compiled
        call = partial(step, lambda *_, **__: loss())
        torch.testing.assert_close(call(), expected, atol=tolerance, rtol=0)
        rows["reference, torch.compile"] = call
    moved = 3 * a.nbytes + target.nbytes
    rows["copy of as many bytes"] = columns.copy_column(moved)
    compare(
        f"{'x'.join(map(str, shape))} {layout} target {size[0]}x{size[1]}"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="copy of as many bytes",
        bytes_moved=moved,
        omitted=omitted,
    )
