"""The search of 80 ranges for the one with the least quantization error."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

BITS = 4
# What the engine's observer samples; a batch of activations; one above glibc's 32 MiB threshold.
BATCHES = [(65536,), (16, 64, 56, 56), (64, 64, 56, 56)]
SHAPES = harness.sizes(cpu=BATCHES, cuda=[*BATCHES, (256, 64, 56, 56)])
# Weights with a range for each output channel: two convolutions, one of them depthwise, and a
# layer of 2.4 million.
WEIGHTS = [(64, 64, 3, 3), (96, 1, 3, 3), (512, 4608)]
# The eager reference takes seconds.
ROUNDS = 5


@functools.cache
def _compiled(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> tuple[Callable[..., object] | None, str]:
    """The compiled reference: its 80 passes are unrolled, and compiling them takes minutes."""
    return columns.compiled_column(reference.search_range, _input(shape, layout, dtype), BITS)


def _input(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return harness.laid(drawn, layout, dtype)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_search_range(
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against the eager and the compiled reference, the extrema alone and a copy."""
    x = _input(shape, layout, dtype)
    expected = reference.search_range(x, BITS)
    ours, omitted = columns.our_columns(ops.search_range, x, BITS)
    for name, call in ours.items():
        assert call() == expected, f"{name} differs from the reference"

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: reference.search_range(x, BITS)
    compiled, reason = _compiled(shape, layout, dtype)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        # A compiler may contract multiply and add; the choice stays on data without near ties.
        assert compiled() == expected
        rows["reference, torch.compile"] = compiled
    rows["aten aminmax"] = x.aminmax
    rows["clone"] = x.clone
    compare(
        f"{'x'.join(map(str, shape))} {BITS} bits{harness.kind(layout, dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=columns.bytes_of("search_range", x),
        omitted=omitted,
        rounds=ROUNDS,
        warmup=1,
    )


def _one_by_one(function: Callable[..., tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, ...]:
    """A call for each channel."""
    found = [function(channel, BITS) for channel in x]
    return tuple(torch.stack(ends) for ends in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize("shape", WEIGHTS, ids=lambda s: "x".join(map(str, s)))
def bench_search_range_by_channel(
    shape: tuple[int, ...],
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """One call for all channels against a call for each, ours and the reference's."""
    x = _input(shape, layout, dtype)
    expected = _one_by_one(ops.search_range, x)
    ours, omitted = columns.our_columns(ops.search_range, x, BITS, axis=0)
    for name, call in ours.items():
        assert all(map(torch.equal, call(), expected)), f"{name} differs from single channels"
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["ours, a call for each channel"] = lambda: _one_by_one(ops.search_range, x)
    rows["reference, eager"] = lambda: reference.search_range(x, BITS, axis=0)
    if x.numel() < 100_000:
        # Beyond, it takes the better part of a minute.
        rows["reference, eager, a call for each channel"] = lambda: _one_by_one(
            reference.search_range, x
        )
    rows["aten aminmax"] = lambda: x.flatten(1).aminmax(dim=1)
    rows["clone"] = x.clone
    compare(
        f"{'x'.join(map(str, shape))} {BITS} bits, per channel{harness.kind(layout, dtype)}",
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=columns.bytes_of("search_range", x),
        omitted=omitted,
        rounds=ROUNDS,
        warmup=1,
    )
