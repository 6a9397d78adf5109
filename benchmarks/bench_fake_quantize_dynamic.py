"""Fake quantization over the tensor's own range: the weights of a step, forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

BITS = 4
# A convolution's and a linear layer's weights, by output channel; the last by input channel, where
# a channel's elements lie apart.
WEIGHTS = [((512, 512, 3, 3), 0), ((1000, 2048), 0), ((512, 512, 3, 3), 1)]
CASES = harness.sizes(cpu=WEIGHTS, cuda=[*WEIGHTS, ((8192, 4096), 0)])


def _aten(x: Tensor, axis: int) -> Tensor:
    last = 2**BITS - 1
    low, high = torch.aminmax(x.movedim(axis, 0).flatten(1), dim=1)
    scale = (high - low) / last
    zero_point = torch.round(-low / scale).clamp(0, last).int()
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, 0, last)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def bench_fake_quantize_dynamic(
    shape: tuple[int, ...],
    axis: int,
    symmetric: bool,
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager, compiled, ATen's range and fake quantization, and a copy."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = harness.laid(x, layout, dtype)
    options = {"axis": axis, "symmetric": symmetric}
    expected = reference.fake_quantize_dynamic(x, BITS, **options)
    ours, omitted = columns.our_columns(ops.fake_quantize_dynamic, x, BITS, **options)
    for name, call in ours.items():
        for actual, wanted in zip(call(), expected, strict=True):
            assert torch.equal(actual, wanted), f"{name} differs from the reference"

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: reference.fake_quantize_dynamic(x, BITS, **options)
    compiled, reason = columns.compiled_column(reference.fake_quantize_dynamic, x, BITS, **options)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        # A compiler may contract multiply and add, which moves values that sit on a tie.
        assert (compiled()[0] != expected[0]).float().mean() < 1e-3
        rows["reference, torch.compile"] = compiled
    if dtype == torch.float32:
        rows["aten aminmax + fake_quantize_per_channel_affine"] = lambda: _aten(x, axis)
    else:
        omitted["aten aminmax + fake_quantize_per_channel_affine"] = "float32 alone"
    rows["clone"] = x.clone
    compare(
        f"{'symmetric' if symmetric else 'asymmetric'} {'x'.join(map(str, shape))} axis {axis}"
        + harness.kind(layout, dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=columns.bytes_of("fake_quantize_dynamic", x),
        omitted=omitted,
    )
