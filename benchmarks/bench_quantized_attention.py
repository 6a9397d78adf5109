"""Attention on quantized operands, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops, reference

from . import columns, harness

# DeiT-Tiny and the windows of a Swin-Tiny with a batch of 8; on a GPU ViT-Base with 64 too.
SIZES = harness.sizes(
    cpu=[(8, 3, 197, 64), (512, 3, 49, 32)], cuda=[(8, 3, 197, 64), (64, 12, 197, 64)]
)
# Widths, and the levels of probabilities.
GRIDS = [(4, "uniform"), (8, "uniform"), (4, "log2")]
SEPARATE, FLOAT = "our ops in a row", "float scaled_dot_product_attention"


def leaves_of(
    shape: tuple[int, ...], bits: int, p_grid: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Returns queries, keys and values, scales and zero points, and the scale of probabilities."""
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(*shape, generator=generator).to(dtype) for _ in range(3)]
    pairs = [torch.tensor((2**bits - 1) / 6.0), torch.tensor(0.25)] * 3
    p_scale = (2**bits - 1) * 8.0 if p_grid == "uniform" else 1.0
    values = [*operands, *pairs, torch.tensor(p_scale)]
    return [value.clone().to(harness.DEVICE).requires_grad_() for value in values]


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize(("bits", "p_grid"), GRIDS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def bench_quantized_attention(
    shape: tuple[int, ...],
    bits: int,
    p_grid: str,
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against our ops in a row, and PyTorch's attention in floating point."""
    leaves = leaves_of(shape, bits, p_grid, dtype)
    alpha = shape[-1] ** -0.5
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gradient = gradient.to(harness.DEVICE, dtype)

    def step(y: Tensor, trained: list[Tensor]) -> list[Tensor]:
        return [y, *torch.autograd.grad(y, trained, gradient)] if backward else [y]

    def fused(namespace: Any) -> list[Tensor]:
        y = namespace.quantized_attention(*leaves, bits, alpha=alpha, p_grid=p_grid)
        return step(y, leaves)

    def separate() -> list[Tensor]:
        *pairs, p_scale = leaves[3:]
        q, k, v = (
            ops.fake_quantize_learned(x, *pairs[2 * i : 2 * i + 2], bits)
            for i, x in enumerate(leaves[:3])
        )
        logits = q @ k.transpose(-2, -1)
        p = ops.softmax_fake_quantize(logits, p_scale, bits, alpha=alpha, grid=p_grid)
        return step(p @ v, leaves)

    def floating() -> list[Tensor]:
        y = functional.scaled_dot_product_attention(*leaves[:3], scale=alpha)
        return step(y, leaves[:3])

    expected = fused(reference)
    ours, omitted = columns.our_columns(fused, ops)
    for column, call in ours.items():
        # A code of a probability that rounding turns changes its row.
        error = (call()[0] - expected[0]).abs().amax(-1) / expected[0].abs().max()
        limit = 1e-5 if dtype == torch.float32 else 1e-2
        assert (error > limit).float().mean() < 1e-3, f"{column} differs"
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows[SEPARATE] = separate
    rows[FLOAT] = floating
    rows["reference, eager"] = lambda: fused(reference)
    rows["clone"] = leaves[0].detach().clone
    directions = "forward and backward" if backward else "forward"
    of_powers = ", powers of two" if p_grid == "log2" else ""
    compare(
        f"{'x'.join(map(str, shape))} {bits} bits{of_powers}, {directions}"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # q, k, v in and y out; then those and the gradient in, and three gradients out.
        bytes_moved=(4 + 7 * backward) * leaves[0].nbytes,
        omitted=omitted,
    )
