"""Fake quantization over a learned grid, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness

BITS = 4
# Activations with one grid; weights with one for each output channel; activations that are dropped.
LAYERS = [
    ((16, 64, 56, 56), None, 1.0),
    ((512, 512, 3, 3), 0, 1.0),
    ((32, 64, 56, 56), None, 1.0),
    ((32, 64, 56, 56), None, 0.5),
]
LARGE = [((256, 64, 56, 56), None, 1.0), ((256, 64, 56, 56), None, 0.5)]
CASES = harness.sizes(cpu=LAYERS, cuda=[*LAYERS, *LARGE])


def composed(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, *, keep: float, **options: Any
) -> Tensor:
    """Dropping with PyTorch's generator, around the reference or, in eager mode, around our op."""
    namespace = reference if torch.compiler.is_compiling() else ops
    y = namespace.fake_quantize_learned(x, scale, zero_point, bits, axis=options["axis"])
    return torch.where(torch.rand_like(x) < keep, y, x)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("layout", harness.layouts())
@pytest.mark.parametrize(("shape", "axis", "keep"), CASES, ids=str)
def bench_fake_quantize_learned(
    shape: tuple[int, ...],
    axis: int | None,
    keep: float,
    layout: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager, compiled and ATen's learnable fake quantization, and a copy.

    Where elements are dropped, against dropping them around it.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, *shape, generator=generator)
    x, gradient = (harness.laid(values, layout, dtype) for values in drawn)
    x.requires_grad_()
    channels = () if axis is None else (shape[axis],)
    scale = torch.full(channels, 3.0, device=harness.DEVICE, requires_grad=True)
    zero_point = torch.zeros(channels, device=harness.DEVICE, requires_grad=True)
    leaves = x, scale, zero_point
    options: dict[str, Any] = {"axis": axis}
    if keep < 1:
        options |= {"keep": keep, "seed": torch.tensor(1, device=harness.DEVICE)}

    def step(function: Callable[..., Tensor], *arguments: Tensor) -> list[Tensor]:
        y = function(*arguments, BITS, **options)
        return [y, *torch.autograd.grad(y, arguments, gradient)]

    width = torch.full(channels or (1,), 1 / 3, device=harness.DEVICE, requires_grad=True)
    offset = torch.zeros(channels or (1,), device=harness.DEVICE, requires_grad=True)

    def aten() -> tuple[Tensor, ...]:
        low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
        if axis is None:
            y = torch._fake_quantize_learnable_per_tensor_affine(x, width, offset, low, high)
        else:
            y = torch._fake_quantize_learnable_per_channel_affine(x, width, offset, axis, low, high)
        return torch.autograd.grad(y, (x, width, offset), gradient)

    expected = step(reference.fake_quantize_learned, *leaves)
    ours, omitted = columns.our_columns(step, ops.fake_quantize_learned, *leaves)
    for name, call in ours.items():
        actual = call()
        assert all(map(torch.equal, actual[:2], expected[:2])), f"{name} differs"
        for mine, theirs in zip(actual[2:], expected[2:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-2)

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = lambda: step(reference.fake_quantize_learned, *leaves)
    rivals = {"reference": reference.fake_quantize_learned}
    if keep < 1:
        rivals["where(rand_like)"] = composed
        rows["where(rand_like) of ours, eager"] = lambda: step(composed, *leaves)
    elif dtype == torch.float32:
        rows["aten _fake_quantize_learnable_affine"] = aten
    else:
        omitted["aten _fake_quantize_learnable_affine"] = "float32 alone"
    for title, function in rivals.items():
        compiled, reason = columns.compiled_column(function, *leaves, BITS, own=True, **options)
        if compiled is None:
            omitted[f"{title}, torch.compile"] = reason
        else:
            rows[f"{title}, torch.compile"] = lambda compiled=compiled: torch.autograd.grad(
                compiled(), leaves, gradient
            )
    rows["clone"] = x.detach().clone
    granularity = "per_tensor" if axis is None else "per_channel"
    dropped = f", keep {keep}" if keep < 1 else ""
    compare(
        f"{granularity} {'x'.join(map(str, shape))} {BITS} bits{dropped}, forward and backward"
        + harness.kind(layout, dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # x in and y out; then x and the gradient in, and the gradient of x out.
        bytes_moved=5 * x.nbytes,
        omitted=omitted,
    )
