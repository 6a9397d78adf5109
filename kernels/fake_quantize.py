"""Fake quantization with a given range, and its clipped straight-through gradient.

The two elementwise kernels serve the whole family: a grid that is given by its range or learned,
of equal steps or of small floats, with or without a per-channel affine map and a ReLU before it.
"""

from enum import IntEnum

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import (
    clipped_gradient,
    dequantize,
    learned_grid,
    make_affine,
    quantize,
    relu,
    relu_gradient,
)
from synq_fast.kernels._block_shapes import block_shape, layout_name
from synq_fast.kernels._layout import (
    Layout,
    dense,
    finished,
    laid_out_as,
    on_device_of,
    output_like,
    power_of_two,
)
from synq_fast.kernels._minifloat_grid import largest_level, minifloat_gradient, minifloat_level

MAXIMUM_COLUMNS = 1024
NO_BOUND = float("nan")
# In place of bits of a mantissa: the levels of the grid are equal steps.
EQUAL_STEPS = -1


class Result(IntEnum):
    """What an elementwise kernel stores."""

    VALUES = 0
    CODES = 1
    GRADIENT = 2
    CLIPPED_GRADIENT = 3


class Before(IntEnum):
    """What precedes the quantizer."""

    NOTHING = 0
    RELU = 1
    AFFINE_RELU = 2
    AFFINE_RESIDUAL_RELU = 3


@triton.jit
def load_grid(first_ptr, second_ptr, offsets, levels, half, LEARNED: tl.constexpr):
    """Returns scale and zero point of channels whose range, or learned pair, is given."""
    if LEARNED:
        scale, zero_point = learned_grid(
            tl.load(first_ptr + offsets), tl.load(second_ptr + offsets)
        )
    else:
        scale, zero_point = make_affine(
            tl.load(first_ptr + offsets), tl.load(second_ptr + offsets), levels, half
        )
    return scale, zero_point


@triton.jit
def apply(
    x, gradient, scale, zero_point, weight, bias, residual, levels, half, upper,
    RESULT: tl.constexpr, BEFORE: tl.constexpr, MANTISSA: tl.constexpr,
):  # fmt: skip
    """Returns a tile of the result named by `RESULT`, and of a residual's gradient, in float32.

    MANTISSA: the bits of small floats, of which `levels` is the largest; below 0 there are codes.
    """
    x = x.to(tl.float32)
    if BEFORE >= 2:
        x = x * weight + bias
    if BEFORE == 3:
        x = x + residual.to(tl.float32)
    value = x
    if BEFORE > 0:
        value = relu(x, upper)
    if RESULT >= 2:
        result = gradient.to(tl.float32)
        if RESULT == 3:
            if MANTISSA >= 0:
                result = minifloat_gradient(result, value, scale, zero_point, levels)
            else:
                result = clipped_gradient(result, value, scale, zero_point, half)
        if BEFORE > 0:
            result = relu_gradient(result, x, upper)
        before_relu = result
        if BEFORE >= 2:
            result = result * weight
    else:
        if MANTISSA >= 0:
            code = minifloat_level(value, scale, zero_point, levels, MANTISSA)
        else:
            code = quantize(value, scale, zero_point, -half, half - 1.0)
        if RESULT == 1:
            result = tl.where(code != code, 0.0, code)
        else:
            result = dequantize(code, scale, zero_point)
        before_relu = result
    return result, before_relu


@triton.jit
def tensor_kernel(
    x_ptr, gradient_ptr, y_ptr, first_ptr, second_ptr, elements, levels, half, upper,
    RESULT: tl.constexpr, BEFORE: tl.constexpr, LEARNED: tl.constexpr, MANTISSA: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One grid for all: a program handles BLOCK consecutive elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    scale, zero_point = load_grid(first_ptr, second_ptr, 0, levels, half, LEARNED)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        x = tl.load(x_ptr + offsets)
        gradient = tl.load(gradient_ptr + offsets) if RESULT >= 2 else x
        y, _ = apply(
            x, gradient, scale, zero_point, 1.0, 0.0, 0.0, levels, half, upper,
            RESULT, BEFORE, MANTISSA,
        )  # fmt: skip
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))
    else:
        mask = offsets < elements
        x = tl.load(x_ptr + offsets, mask=mask)
        gradient = tl.load(gradient_ptr + offsets, mask=mask) if RESULT >= 2 else x
        y, _ = apply(
            x, gradient, scale, zero_point, 1.0, 0.0, 0.0, levels, half, upper,
            RESULT, BEFORE, MANTISSA,
        )  # fmt: skip
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def channel_kernel(
    x_ptr, gradient_ptr, y_ptr, first_ptr, second_ptr, weight_ptr, bias_ptr,
    residual_ptr, of_residual_ptr, rows, columns, channels, levels, half, upper,
    RESULT: tl.constexpr, BEFORE: tl.constexpr, LEARNED: tl.constexpr, MANTISSA: tl.constexpr,
    OF_RESIDUAL: tl.constexpr, BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One grid or affine map per channel: a program handles a tile of the (rows, columns) matrix.

    BY_COLUMN: rows = outer, columns = channels. Otherwise rows = outer * channels, columns = inner.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(columns, COLUMNS)
    row = (program // tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.minimum(column, columns - 1) if BY_COLUMN else row % channels
    axis: tl.constexpr = 0 if BY_COLUMN else 1
    weight = 1.0
    bias = 0.0
    if BEFORE >= 2:
        weight = tl.expand_dims(tl.load(weight_ptr + channel), axis)
        bias = tl.expand_dims(tl.load(bias_ptr + channel), axis)
        scale, zero_point = load_grid(first_ptr, second_ptr, 0, levels, half, LEARNED)
    else:
        scale, zero_point = load_grid(first_ptr, second_ptr, channel, levels, half, LEARNED)
        scale = tl.expand_dims(scale, axis)
        zero_point = tl.expand_dims(zero_point, axis)

    offsets = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask)
    gradient = tl.load(gradient_ptr + offsets, mask=mask) if RESULT >= 2 else x
    residual = tl.load(residual_ptr + offsets, mask=mask) if BEFORE == 3 else x
    y, before_relu = apply(
        x, gradient, scale, zero_point, weight, bias, residual, levels, half, upper,
        RESULT, BEFORE, MANTISSA,
    )  # fmt: skip
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
    if OF_RESIDUAL:
        before_relu = before_relu.to(of_residual_ptr.dtype.element_ty)
        tl.store(of_residual_ptr + offsets, before_relu, mask=mask)


def launch(
    x: torch.Tensor,
    y: torch.Tensor,
    grid: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    layout: Layout,
    result: Result,
    *,
    gradient: torch.Tensor | None = None,
    learned: bool = False,
    before: Before = Before.NOTHING,
    upper: float | None = None,
    affine_map: tuple[torch.Tensor, torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    of_residual: torch.Tensor | None = None,
    minifloat: bool = False,
) -> None:
    """Enqueues the kernel for the layout.

    `grid` is the range, or scale and zero point if `learned`. With an affine map the layout's
    channels are those of the map, and the grid is one for all; its residual is laid out as `x`, and
    that one's gradient is written to `of_residual` if given. The levels of the grid are those of
    small floats if `minifloat`.
    """
    if x.numel() == 0:
        return
    levels, half = float(2**bits - 1), float(2 ** (bits - 1))
    if minifloat:
        # Levels begin at zero.
        levels, half = float(largest_level(bits)), 0.0
    pair = [bound.contiguous() for bound in grid]
    gradient = x if gradient is None else gradient
    upper = NO_BOUND if upper is None else upper
    options = {
        "RESULT": int(result), "BEFORE": int(before), "LEARNED": learned,
        "MANTISSA": bits - 3 if minifloat else EQUAL_STEPS, "enable_fp_fusion": False,
    }  # fmt: skip
    with on_device_of(x):
        if layout.channels == 1 and affine_map is None:
            block, warps = block_shape("tensor_kernel", x.dtype)
            tensor_kernel[(triton.cdiv(x.numel(), block),)](
                x, gradient, y, *pair, x.numel(), levels, half, upper, BLOCK=block, num_warps=warps,
                **options,
            )  # fmt: skip
            return
        if layout.by_column:
            rows, columns = layout.outer, layout.channels
        else:
            rows, columns = layout.outer * layout.channels, layout.inner
        kernel = "channel_kernel" if residual is None else "channel_kernel with residual"
        elements, warps = block_shape(kernel, x.dtype, layout_name(layout.by_column))
        most = min(elements, 256 if layout.by_column else MAXIMUM_COLUMNS)
        tile_columns = min(power_of_two(columns), most)
        tile_rows = elements // tile_columns
        programs = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
        factors = pair if affine_map is None else [value.contiguous() for value in affine_map]
        channel_kernel[programs](
            x, gradient, y, *pair, *factors, x if residual is None else residual,
            y if of_residual is None else of_residual,
            rows, columns, layout.channels, levels, half, upper,
            OF_RESIDUAL=of_residual is not None, BY_COLUMN=layout.by_column,
            ROWS=tile_rows, COLUMNS=tile_columns, num_warps=warps, **options,
        )  # fmt: skip


def fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> torch.Tensor:
    """Returns `x` rounded to 2^bits levels over the given range, in the dtype and layout of `x`."""
    x, layout = dense(x, axis, groups)
    y = output_like(x)
    launch(x, y, (range_min, range_max), bits, layout, Result.VALUES)
    return finished(y, x)


def fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> torch.Tensor:
    """Returns `gradient` with zeros where `x` was clipped."""
    x, layout = dense(x, axis, groups)
    y = output_like(x)
    launch(
        x, y, (range_min, range_max), bits, layout, Result.CLIPPED_GRADIENT,
        gradient=laid_out_as(gradient, x),
    )  # fmt: skip
    return finished(y, x)
