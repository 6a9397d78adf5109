"""Softmax with fake quantization over one scale, and its two gradients.

A program reads a row from memory once, and again from the cache. Backward it handles every
`parts`-th row and keeps a sum for the scale; a second kernel adds the parts in float64. Every part
has its place, so every run gives the same bits.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._channel_sums import MAXIMUM_SPLITS, finish_sums_kernel
from synq_fast.kernels._layout import laid_out_as, on_device_of, output_like, power_of_two
from synq_fast.kernels._probabilities import (
    probability_code,
    probability_grid,
    probability_terms,
    probability_value,
)
from synq_fast.kernels._rows import restored, rows_of, warps_for

BLOCK = 1024
GRADIENT_BLOCK = 512


@triton.jit
def moments_of(x_ptr, zero, columns, alpha, BLOCK: tl.constexpr):
    """Returns the greatest of `alpha * x` of a row and the inverse of the sum of exponentials.

    `zero` is one of int64.
    """
    place = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    start = zero  # the interpreter cannot run `range` over tensors with every NumPy
    while start < columns:
        column = start + place
        x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32) * alpha
        most = tl.maximum(most, tl.where(column < columns, x, float("-inf")))
        start += BLOCK
    greatest = tl.max(most, 0)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    start = zero
    while start < columns:
        column = start + place
        x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32) * alpha
        total += tl.where(column < columns, tl.exp(x - greatest), 0.0)
        start += BLOCK
    return greatest, 1.0 / tl.sum(total, 0)


@triton.jit
def softmax_kernel(
    x_ptr, y_ptr, scale_ptr, columns, alpha, half, least, LOG: tl.constexpr, BLOCK: tl.constexpr
):
    """A program handles a row; levels are powers of two if LOG."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr)
    greatest, inverse = moments_of(x_ptr + row * columns, row * 0, columns, alpha, BLOCK)
    start = row * 0
    while start < columns:
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        x = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        value = tl.exp(x * alpha - greatest) * inverse
        code = probability_code(value, scale, half, least, LOG)
        y = probability_value(code, scale, LOG)
        tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=mask)
        start += BLOCK


@triton.jit
def softmax_gradient_kernel(
    x_ptr, gradient_ptr, y_ptr, scale_ptr, sums_ptr, rows, columns, parts, alpha, half, least,
    LOG: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program `part` handles every `parts`-th row."""
    part = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr)
    terms = tl.full((BLOCK,), 0.0, tl.float32)
    row = part
    while row < rows:
        own_x_ptr = x_ptr + row * columns
        own_gradient_ptr = gradient_ptr + row * columns
        greatest, inverse = moments_of(own_x_ptr, row * 0, columns, alpha, BLOCK)
        products = tl.full((BLOCK,), 0.0, tl.float32)
        start = row * 0
        while start < columns:
            column = start + place
            mask = column < columns
            x = tl.load(own_x_ptr + column, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.load(own_gradient_ptr + column, mask=mask, other=0.0).to(tl.float32)
            value = tl.where(mask, tl.exp(x * alpha - greatest) * inverse, 0.0)
            of_value, one = probability_terms(gradient, value, scale, half, least, LOG)
            terms += tl.where(mask, one, 0.0)
            products += of_value * value
            start += BLOCK
        along = tl.sum(products, 0)
        start = row * 0
        while start < columns:
            column = start + place
            mask = column < columns
            x = tl.load(own_x_ptr + column, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.load(own_gradient_ptr + column, mask=mask, other=0.0).to(tl.float32)
            value = tl.exp(x * alpha - greatest) * inverse
            of_value, _ = probability_terms(gradient, value, scale, half, least, LOG)
            y = alpha * value * (of_value - along)
            tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=mask)
            start += BLOCK
        row += parts
    tl.store(sums_ptr + part, tl.sum(terms, 0))


def softmax_fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, bits: int, alpha: float, log2: bool
) -> torch.Tensor:
    """Returns the rounded probabilities of rows, in the dtype and layout of `x`."""
    rows = rows_of(x)
    y = output_like(rows)
    columns = x.shape[-1]
    if x.numel() > 0:
        block = min(power_of_two(columns), BLOCK)
        with on_device_of(x):
            softmax_kernel[(x.numel() // columns,)](
                rows, y, scale, columns, alpha, *probability_grid(bits, log2), LOG=log2,
                BLOCK=block, num_warps=warps_for(block), enable_fp_fusion=False,
            )  # fmt: skip
    return restored(y, x)


def softmax_fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    alpha: float,
    log2: bool,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of the logits and of the scale."""
    rows = rows_of(x)
    y = output_like(rows)
    columns = x.shape[-1]
    if x.numel() == 0:
        return restored(y, x), torch.zeros_like(scale)
    of_scale, nothing = scale.new_empty(scale.shape), scale.new_empty(())
    count = x.numel() // columns
    parts = min(count, MAXIMUM_SPLITS)
    sums = scale.new_empty(parts)
    block = min(power_of_two(columns), GRADIENT_BLOCK)
    with on_device_of(x):
        softmax_gradient_kernel[(parts,)](
            rows, laid_out_as(gradient, rows), y, scale, sums, count, columns, parts, alpha,
            *probability_grid(bits, log2), LOG=log2, BLOCK=block, num_warps=warps_for(block),
            enable_fp_fusion=False,
        )  # fmt: skip
        finish_sums_kernel[(1,)](
            sums, sums, scale, of_scale, nothing, parts, gradient_scale, LEARNED=not log2,
            SPLITS=power_of_two(parts), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return restored(y, x), of_scale
