"""Layer normalisation with fake quantization over one learned grid, and its five gradients.

A program reads a row from memory once, and again from the cache. Backward it handles every
`parts`-th row and adds to its own sums for weight and bias; a second kernel adds the parts in
float64. Every part has its place, so every run gives the same bits.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, quantize
from synq_fast.kernels._channel_sums import learned_terms
from synq_fast.kernels._layout import laid_out_as, on_device_of, output_like, power_of_two
from synq_fast.kernels._rows import restored, rows_of, warps_for
from synq_fast.kernels.fake_quantize import load_grid

BLOCK = 1024
GRADIENT_BLOCK = 512
COLUMNS = 64
PARTS = 16
MAXIMUM_PARTS = 512
LEAST_ROWS = 8


@triton.jit
def moments_of(x_ptr, zero, columns, eps, BLOCK: tl.constexpr):
    """Returns the mean of a row and the inverse of its deviation; `zero` is one of int64."""
    place = tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    start = zero  # the interpreter cannot run `range` over tensors with every NumPy
    while start < columns:
        column = start + place
        total += tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        start += BLOCK
    mean = tl.sum(total, 0) / columns
    squares = tl.full((BLOCK,), 0.0, tl.float32)
    start = zero
    while start < columns:
        column = start + place
        x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        squares += tl.where(column < columns, (x - mean) * (x - mean), 0.0)
        start += BLOCK
    return mean, 1.0 / tl.sqrt(tl.sum(squares, 0) / columns + eps)


@triton.jit
def norm_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, scale_ptr, zero_point_ptr, columns, eps, half,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A program handles a row."""
    row = tl.program_id(0).to(tl.int64)
    scale, zero_point = load_grid(scale_ptr, zero_point_ptr, 0, 0.0, half, True)
    mean, inverse = moments_of(x_ptr + row * columns, row * 0, columns, eps, BLOCK)
    start = row * 0
    while start < columns:
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        x = tl.load(x_ptr + row * columns + column, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + column, mask=mask, other=0.0)
        value = (x - mean) * inverse * weight + tl.load(bias_ptr + column, mask=mask, other=0.0)
        code = quantize(value, scale, zero_point, -half, half - 1.0)
        y = dequantize(code, scale, zero_point)
        tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=mask)
        start += BLOCK


@triton.jit
def norm_gradient_kernel(
    x_ptr, gradient_ptr, y_ptr, weight_ptr, bias_ptr, scale_ptr, zero_point_ptr, sums_ptr,
    rows, columns, parts, eps, half, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program `part` handles every `parts`-th row.

    Its sums are those for weight, for bias, and the terms of the scale and of the zero point.
    """
    part = tl.program_id(0).to(tl.int64)
    sums_ptr += part * (2 * columns + 2)
    place = tl.arange(0, BLOCK)
    scale, zero_point = load_grid(scale_ptr, zero_point_ptr, 0, 0.0, half, True)
    first = tl.full((BLOCK,), 0.0, tl.float32)
    second = tl.full((BLOCK,), 0.0, tl.float32)
    row = part
    while row < rows:
        own_x_ptr = x_ptr + row * columns
        own_gradient_ptr = gradient_ptr + row * columns
        mean, inverse = moments_of(own_x_ptr, row * 0, columns, eps, BLOCK)
        slopes = tl.full((BLOCK,), 0.0, tl.float32)
        products = tl.full((BLOCK,), 0.0, tl.float32)
        start = row * 0
        while start < columns:
            column = start + place
            mask = column < columns
            x = tl.load(own_x_ptr + column, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.load(own_gradient_ptr + column, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + column, mask=mask, other=0.0)
            bias = tl.load(bias_ptr + column, mask=mask, other=0.0)
            normal = tl.where(mask, (x - mean) * inverse, 0.0)
            value = normal * weight + bias
            of_value, one, other = learned_terms(gradient, value, scale, zero_point, half)
            # A NaN zero point makes NaN of what the mask left out.
            first += tl.where(mask, one, 0.0)
            second += tl.where(mask, other, 0.0)
            slopes += of_value * weight
            products += of_value * weight * normal
            # Each element is added by the thread that wrote it.
            earlier = mask & (row > part)
            of_weight = tl.load(sums_ptr + column, mask=earlier, other=0.0)
            of_bias = tl.load(sums_ptr + columns + column, mask=earlier, other=0.0)
            tl.store(sums_ptr + column, of_weight + of_value * normal, mask=mask)
            tl.store(sums_ptr + columns + column, of_bias + of_value, mask=mask)
            start += BLOCK
        slope_mean = tl.sum(slopes, 0) / columns
        along = tl.sum(products, 0) / columns
        start = row * 0
        while start < columns:
            column = start + place
            mask = column < columns
            x = tl.load(own_x_ptr + column, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.load(own_gradient_ptr + column, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + column, mask=mask, other=0.0)
            bias = tl.load(bias_ptr + column, mask=mask, other=0.0)
            normal = (x - mean) * inverse
            value = normal * weight + bias
            of_value, _, _ = learned_terms(gradient, value, scale, zero_point, half)
            y = (of_value * weight - slope_mean - normal * along) * inverse
            tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=mask)
            start += BLOCK
        row += parts
    tl.store(sums_ptr + 2 * columns, tl.sum(first, 0))
    tl.store(sums_ptr + 2 * columns + 1, tl.sum(second, 0))


@triton.jit
def norm_total_kernel(
    sums_ptr, of_weight_ptr, of_bias_ptr, of_scale_ptr, of_zero_point_ptr, scale_ptr, columns,
    parts, gradient_scale, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds the parts, a program for COLUMNS of their sums."""
    count = 2 * columns + 2
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.full((PARTS, COLUMNS), 0.0, tl.float64)
    start = tl.program_id(0).to(tl.int64) * 0
    while start < parts:
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (column < count)[None, :]
        offsets = part[:, None] * count + column[None, :]
        total += tl.load(sums_ptr + offsets, mask=mask, other=0.0).to(tl.float64)
        start += PARTS
    total = tl.sum(total, 0)
    scale = tl.load(scale_ptr).to(tl.float64)
    tl.store(of_weight_ptr + column, total.to(tl.float32), mask=column < columns)
    beyond = column - columns
    is_bias = (beyond >= 0) & (beyond < columns)
    tl.store(of_bias_ptr + beyond, total.to(tl.float32), mask=is_bias)
    of_scale = total / (scale * scale) * gradient_scale
    of_zero_point = total / scale * gradient_scale
    zeros = column * 0
    tl.store(of_scale_ptr + zeros, of_scale.to(tl.float32), mask=column == count - 2)
    tl.store(of_zero_point_ptr + zeros, of_zero_point.to(tl.float32), mask=column == count - 1)


def layer_norm_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    eps: float,
) -> torch.Tensor:
    """Returns normalised rows rounded to the grid, in the dtype and layout of `x`."""
    rows = rows_of(x)
    y = output_like(rows)
    columns = x.shape[-1]
    if x.numel() > 0:
        block = min(power_of_two(columns), BLOCK)
        with on_device_of(x):
            norm_kernel[(x.numel() // columns,)](
                rows, y, weight.contiguous(), bias.contiguous(), scale, zero_point, columns, eps,
                float(2 ** (bits - 1)), BLOCK=block, num_warps=warps_for(block),
                enable_fp_fusion=False,
            )  # fmt: skip
    return restored(y, x)


def layer_norm_fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    eps: float,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, weight, bias, scale and zero point."""
    rows = rows_of(x)
    y = output_like(rows)
    columns = x.shape[-1]
    parameters = (weight, bias, scale, zero_point)
    if x.numel() == 0:
        return restored(y, x), *(torch.zeros_like(value) for value in parameters)
    results = [value.new_empty(value.shape) for value in parameters]
    count = x.numel() // columns
    parts = min(triton.cdiv(count, LEAST_ROWS), MAXIMUM_PARTS)
    sums = scale.new_empty(parts, 2 * columns + 2)
    block = min(power_of_two(columns), GRADIENT_BLOCK)
    with on_device_of(x):
        norm_gradient_kernel[(parts,)](
            rows, laid_out_as(gradient, rows), y, weight.contiguous(), bias.contiguous(), scale,
            zero_point, sums, count, columns, parts, eps, float(2 ** (bits - 1)), BLOCK=block,
            num_warps=warps_for(block), enable_fp_fusion=False,
        )  # fmt: skip
        norm_total_kernel[(triton.cdiv(2 * columns + 2, COLUMNS),)](
            sums, *results, scale, columns, parts, gradient_scale, PARTS=PARTS, COLUMNS=COLUMNS,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return restored(y, x), *results
