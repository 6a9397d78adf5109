"""Static fake quantization of activations, forward."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

BITS = 4
CHANNEL_AXIS = 1
SHAPES = harness.sizes(
    # The first fits the caches of a server CPU; the second, 51 MB, exceeds the 32 MiB of glibc.
    cpu=[(16, 64, 56, 56), (64, 64, 56, 56)],
    # 12.8 MB, in the L2 of a large GPU, and 206 MB, in that of none.
    cuda=[(16, 64, 56, 56), (256, 64, 56, 56)],
)


def _ranges(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    if axis is None:
        return 0.8 * x.min(), 0.8 * x.max()
    others = [dim for dim in range(x.dim()) if dim != axis]
    return 0.8 * x.amin(others), 0.8 * x.amax(others)


def _aten(x: Tensor, low: Tensor, high: Tensor, axis: int | None) -> Callable[[], Tensor]:
    last = 2**BITS - 1
    scale = (high - low) / last
    zero_point = torch.round(-low / scale).clamp(0, last).int()
    if axis is None:
        step, offset = scale.item(), int(zero_point.item())
        return columns.call(torch.fake_quantize_per_tensor_affine, x, step, offset, 0, last)
    return columns.call(torch.fake_quantize_per_channel_affine, x, scale, zero_point, axis, 0, last)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("axis", [None, CHANNEL_AXIS], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_fake_quantize(
    shape: tuple[int, ...],
    axis: int | None,
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager, compiled and ATen's fake quantization and a copy of the tensor."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(harness.DEVICE)
    low, high = _ranges(x, axis)
    x = x.to(dtype, memory_format=harness.MEMORY_FORMATS[layout])
    arguments = (x, low, high, BITS)

    ours, omitted = columns.our_columns(ops.fake_quantize, *arguments, axis=axis)
    expected = reference.fake_quantize(*arguments, axis=axis)
    for name, call in ours.items():
        assert torch.equal(call(), expected), f"{name} differs from the reference"

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = columns.call(reference.fake_quantize, *arguments, axis=axis)
    compiled, reason = columns.compiled_column(reference.fake_quantize, *arguments, axis=axis)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        # A compiler may contract multiply and add, which moves values that sit on a tie.
        assert (compiled() != expected).float().mean() < 1e-3
        rows["reference, torch.compile"] = compiled
    granularity = "per_tensor" if axis is None else "per_channel"
    if dtype == torch.float32:
        rows[f"aten fake_quantize_{granularity}_affine"] = _aten(x, low, high, axis)
    else:
        omitted[f"aten fake_quantize_{granularity}_affine"] = "float32 alone"
    rows["clone"] = columns.call(torch.clone, x)
    compare(
        f"{granularity} {'x'.join(map(str, shape))} {BITS} bits{harness.kind(layout, dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=columns.bytes_of("fake_quantize", x),
        elements=math.prod(shape),
        omitted=omitted,
    )
