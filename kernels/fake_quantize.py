"""Fake quantization with a given range, and its clipped straight-through gradient."""

from enum import IntEnum

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, make_affine, quantize
from synq_fast.kernels._layout import (
    Layout,
    dense,
    finished,
    laid_out_as,
    on_device_of,
    output_like,
    power_of_two,
)

BLOCK = 2048
MAXIMUM_COLUMNS = 1024


class Result(IntEnum):
    """What an elementwise kernel stores."""

    VALUES = 0
    GRADIENT = 1
    CODES = 2


@triton.jit
def apply(x, gradient, scale, zero_point, half, RESULT: tl.constexpr):
    """Returns one tile of the result named by `RESULT`, in float32."""
    x = x.to(tl.float32)
    if RESULT == 1:
        # One step beyond each end tells what was clipped; NaN lies on neither side.
        code = quantize(x, scale, zero_point, -half - 1.0, half)
        result = tl.where((code < -half) | (code > half - 1.0), 0.0, gradient.to(tl.float32))
    elif RESULT == 2:
        code = quantize(x, scale, zero_point, -half, half - 1.0)
        result = tl.where(code != code, 0.0, code)
    else:
        code = quantize(x, scale, zero_point, -half, half - 1.0)
        result = dequantize(code, scale, zero_point)
    return result


@triton.jit
def tensor_kernel(
    x_ptr, gradient_ptr, y_ptr, min_ptr, max_ptr, elements, levels, half,
    RESULT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One range for all: a program handles BLOCK consecutive elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    scale, zero_point = make_affine(tl.load(min_ptr), tl.load(max_ptr), levels, half)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        x = tl.load(x_ptr + offsets)
        gradient = tl.load(gradient_ptr + offsets) if RESULT == 1 else x
        y = apply(x, gradient, scale, zero_point, half, RESULT)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))
    else:
        mask = offsets < elements
        x = tl.load(x_ptr + offsets, mask=mask)
        gradient = tl.load(gradient_ptr + offsets, mask=mask) if RESULT == 1 else x
        y = apply(x, gradient, scale, zero_point, half, RESULT)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def channel_kernel(
    x_ptr, gradient_ptr, y_ptr, min_ptr, max_ptr, rows, columns, channels, levels, half,
    RESULT: tl.constexpr, BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One range per channel: a program handles a tile of the (rows, columns) matrix.

    BY_COLUMN: rows = outer, columns = channels. Otherwise rows = outer * channels, columns = inner.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(columns, COLUMNS)
    row = (program // tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.minimum(column, columns - 1) if BY_COLUMN else row % channels
    scale, zero_point = make_affine(
        tl.load(min_ptr + channel), tl.load(max_ptr + channel), levels, half
    )
    scale = scale[None, :] if BY_COLUMN else scale[:, None]
    zero_point = zero_point[None, :] if BY_COLUMN else zero_point[:, None]

    offsets = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask)
    gradient = tl.load(gradient_ptr + offsets, mask=mask) if RESULT == 1 else x
    y = apply(x, gradient, scale, zero_point, half, RESULT)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def launch(
    x: torch.Tensor,
    gradient: torch.Tensor,
    y: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    layout: Layout,
    result: Result,
) -> None:
    """Enqueues the kernel for the layout; `gradient` is read for Result.GRADIENT alone."""
    if x.numel() == 0:
        return
    levels, half = float(2**bits - 1), float(2 ** (bits - 1))
    ranges = (range_min.contiguous(), range_max.contiguous())
    with on_device_of(x):
        if layout.channels == 1:
            grid = (triton.cdiv(x.numel(), BLOCK),)
            tensor_kernel[grid](
                x, gradient, y, *ranges, x.numel(), levels, half,
                RESULT=int(result), BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            return
        if layout.by_column:
            rows, columns = layout.outer, layout.channels
        else:
            rows, columns = layout.outer * layout.channels, layout.inner
        tile_columns = min(power_of_two(columns), 256 if layout.by_column else MAXIMUM_COLUMNS)
        tile_rows = BLOCK // tile_columns
        grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
        channel_kernel[grid](
            x, gradient, y, *ranges, rows, columns, layout.channels, levels, half,
            RESULT=int(result), BY_COLUMN=layout.by_column, ROWS=tile_rows, COLUMNS=tile_columns,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def fake_quantize(
    x: torch.Tensor, range_min: torch.Tensor, range_max: torch.Tensor, bits: int, axis: int | None
) -> torch.Tensor:
    """Returns `x` rounded to 2^bits levels over the given range, in the dtype and layout of `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(x, x, y, range_min, range_max, bits, layout, Result.VALUES)
    return finished(y, x)


def fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
) -> torch.Tensor:
    """Returns `gradient` with zeros where `x` was clipped."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(x, laid_out_as(gradient, x), y, range_min, range_max, bits, layout, Result.GRADIENT)
    return finished(y, x)
