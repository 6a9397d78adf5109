"""Total variation of images, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference
from synq_fast.testing import CASES

from . import columns, harness

# A batch at 32 and at 224 pixels, as synthesis works on.
SHAPES = harness.sizes(
    cpu=[(128, 3, 32, 32), (16, 3, 224, 224)], cuda=[(128, 3, 32, 32), (256, 3, 224, 224)]
)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_total_variation(
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against the reference, eager and compiled, and a copy."""
    generator = torch.Generator().manual_seed(0)
    x = harness.laid(torch.randn(shape, generator=generator), layout, dtype).requires_grad_()

    def step(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        y = function(x)
        return [y, *torch.autograd.grad(y, x)]

    # The reference's norms, one float32 sum of millions of squares, are the less exact ones.
    oracle = CASES["total_variation"].oracle
    expected = step(lambda x: oracle(x.double()).float())
    ours, omitted = columns.our_columns(step, ops.total_variation)
    relative = 1e-5 if dtype == torch.float32 else 1e-2
    for call in ours.values():
        torch.testing.assert_close(call(), expected, rtol=relative, atol=1e-6)

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.total_variation)
    compiled, reason = columns.compiled_column(reference.total_variation, x, own=True)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = lambda: torch.autograd.grad(compiled(), x)
    rows["clone"] = x.detach().clone
    compare(
        f"{'x'.join(map(str, shape))}, forward and backward{harness.kind(layout, dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # The backward reads the images once more and writes their gradient.
        bytes_moved=columns.bytes_of("total_variation", x) + 2 * x.nbytes,
        omitted=omitted,
    )
