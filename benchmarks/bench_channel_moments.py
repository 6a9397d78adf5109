"""Mean and variance of every channel of every image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

(SHAPE,) = harness.sizes(cpu=[(16, 64, 56, 56)], cuda=[(256, 64, 56, 56)])


def _var_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """ATen's own pass over the same data."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0)
    return mean, variance


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def bench_channel_moments(
    layout: str,
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """One read against the reference, eager and compiled, and against ATen's var_mean."""
    memory_format = harness.MEMORY_FORMATS[layout]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(
        harness.DEVICE, dtype, memory_format=memory_format
    )
    x.requires_grad_(backward)
    gradients = torch.randn(2, *SHAPE[:2], generator=generator).to(harness.DEVICE).unbind()

    def run(function: Callable[..., tuple[Tensor, Tensor]], *arguments: object) -> list[Tensor]:
        moments = function(*arguments)
        return [*moments, *(torch.autograd.grad(moments, x, gradients) if backward else ())]

    expected = run(reference.channel_moments, x)
    ours, omitted = columns.our_columns(run, ops.channel_moments, x)
    # Half types are rounded once more where the gradient is written.
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    for column, call in ours.items():
        for mine, theirs in zip(call(), expected, strict=True):
            torch.testing.assert_close(
                mine, theirs, rtol=rtol, atol=1e-6, msg=lambda text, c=column: f"{c}: {text}"
            )

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: run(reference.channel_moments, x)
    compiled, reason = columns.compiled_column(reference.channel_moments, x)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = lambda: run(compiled)
    rows["ATen var_mean"] = lambda: run(_var_mean, x)
    rows["clone"] = x.detach().clone
    compare(
        f"{'x'.join(map(str, SHAPE))} {layout}{harness.kind('contiguous', dtype)}, "
        f"{'forward and backward' if backward else 'forward'}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=(3 if backward else 1) * x.nbytes,
        omitted=omitted,
    )
