"""Elements of one tensor or of another by chance, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

KEEP = 0.5
CASES = harness.sizes(
    cpu=[(32, 64, 56, 56)], cuda=[(32, 64, 56, 56), (256, 64, 56, 56), (64, 197, 768)]
)


def composed(a: Tensor, b: Tensor, keep: float, seed: Tensor) -> Tensor:
    """The same from PyTorch's ops, with its own generator."""
    return torch.where(torch.rand_like(a) < keep, a, b)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("shape", CASES, ids=str)
def bench_random_mix(
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager and compiled compositions, the references, and a copy."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, *shape, generator=generator)
    a, b, gradient = (harness.laid(values, layout, dtype) for values in drawn)
    leaves = a.requires_grad_(), b.requires_grad_()
    seed = torch.tensor(1, device=harness.DEVICE)

    def step(function: Callable[..., Tensor]) -> list[Tensor]:
        y = function(*leaves, KEEP, seed)
        return [y, *torch.autograd.grad(y, leaves, gradient)]

    expected = step(reference.random_mix)
    ours, omitted = columns.our_columns(step, ops.random_mix)
    for name, call in ours.items():
        assert all(map(torch.equal, call(), expected)), f"{name} differs"

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.random_mix)
    rows["where(rand_like), eager"] = lambda: step(composed)
    for title, function in (("reference", reference.random_mix), ("where(rand_like)", composed)):
        compiled, reason = columns.compiled_column(function, *leaves, KEEP, seed, own=True)
        if compiled is None:
            omitted[f"{title}, torch.compile"] = reason
        else:
            rows[f"{title}, torch.compile"] = lambda compiled=compiled: torch.autograd.grad(
                compiled(), leaves, gradient
            )
    rows["clone"] = a.detach().clone
    compare(
        f"{'x'.join(map(str, shape))}, forward and backward{harness.kind(layout, dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # As many for the gradient in and its parts out as for the operands and the mixture.
        bytes_moved=2 * columns.bytes_of("random_mix", a, b),
        omitted=omitted,
    )
