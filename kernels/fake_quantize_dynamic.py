"""Fake quantization with the tensor's own range, per tensor or per channel.

Channels that fit in a program's registers are read once. Otherwise programs reduce parts of a
channel to partial ranges, a second kernel reduces the partials, and the elementwise kernel of
`fake_quantize` follows. Partials have fixed places and minimum and maximum are exact, so every run
gives the same bits.
"""

import math

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import (
    dequantize,
    make_affine,
    maximum_of,
    minimum_of,
    quantize,
    symmetric_range,
)
from synq_fast.kernels._block_shapes import block_shape, layout_name
from synq_fast.kernels._layout import (
    Layout,
    dense,
    finished,
    on_device_of,
    output_like,
    power_of_two,
)
from synq_fast.kernels.fake_quantize import Result, launch

FUSED_ELEMENTS = 16384
FUSED_CHANNELS = 16  # side by side, when channels are the fastest dimension
TARGET_PROGRAMS = 1024
MAXIMUM_SPLITS = 512


@triton.jit
def fused_kernel(
    x_ptr, y_ptr, min_ptr, max_ptr, outer, channels, inner, levels, half,
    SYMMETRIC: tl.constexpr, BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Reads whole channels once: one per program, or COLUMNS neighbours when BY_COLUMN."""
    program = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    if BY_COLUMN:
        channel = program * COLUMNS + column
        offsets = row[:, None] * channels + channel[None, :]
        mask = (row < outer)[:, None] & (channel < channels)[None, :]
    else:
        channel = program
        offsets = (row[:, None] * channels + program) * inner + column[None, :]
        mask = (row < outer)[:, None] & (column < inner)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    axis: tl.constexpr = 0 if BY_COLUMN else None
    range_min = minimum_of(tl.where(mask, x, float("inf")), axis)
    range_max = maximum_of(tl.where(mask, x, float("-inf")), axis)
    if SYMMETRIC:
        range_min, range_max = symmetric_range(range_min, range_max)
    scale, zero_point = make_affine(range_min, range_max, levels, half)
    if BY_COLUMN:
        tl.store(min_ptr + channel, range_min, mask=channel < channels)
        tl.store(max_ptr + channel, range_max, mask=channel < channels)
        scale = scale[None, :]
        zero_point = zero_point[None, :]
    else:
        tl.store(min_ptr + channel, range_min)
        tl.store(max_ptr + channel, range_max)
    y = dequantize(quantize(x, scale, zero_point, -half, half - 1.0), scale, zero_point)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def ranges_kernel(
    x_ptr, low_ptr, high_ptr, outer, channels, inner, splits,
    SYMMETRIC: tl.constexpr, BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (channels, split) reduces every `splits`-th tile; partials are (channels, splits).

    SYMMETRIC is for partials that are the result.
    """
    program = tl.program_id(0).to(tl.int64)
    group = program // splits
    split = program % splits
    columns = channels if BY_COLUMN else inner
    column_tiles = 1 if BY_COLUMN else tl.cdiv(inner, COLUMNS)
    tiles = tl.cdiv(outer, ROWS) * column_tiles
    low = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
    high = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        first_row = (tile // column_tiles) * ROWS
        first_column = (group if BY_COLUMN else tile % column_tiles) * COLUMNS
        row = first_row + tl.arange(0, ROWS)
        column = first_column + tl.arange(0, COLUMNS)
        if BY_COLUMN:
            offsets = row[:, None] * channels + column[None, :]
        else:
            offsets = (row[:, None] * channels + group) * inner + column[None, :]
        mask = (row < outer)[:, None] & (column < columns)[None, :]
        # Whole tiles carry no mask: one that ends at an odd place would split the 128-bit accesses.
        if (first_row + ROWS <= outer) & (first_column + COLUMNS <= columns):
            x = tl.load(x_ptr + offsets).to(tl.float32)
            low = tl.minimum(low, x, propagate_nan=tl.PropagateNan.ALL)
            high = tl.maximum(high, x, propagate_nan=tl.PropagateNan.ALL)
        else:
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            least = tl.where(mask, x, float("inf"))
            most = tl.where(mask, x, float("-inf"))
            low = tl.minimum(low, least, propagate_nan=tl.PropagateNan.ALL)
            high = tl.maximum(high, most, propagate_nan=tl.PropagateNan.ALL)
        tile += splits
    least = minimum_of(low, 0 if BY_COLUMN else None)
    most = maximum_of(high, 0 if BY_COLUMN else None)
    if SYMMETRIC:
        least, most = symmetric_range(least, most)
    if BY_COLUMN:
        channel = group * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(low_ptr + channel * splits + split, least, mask=channel < channels)
        tl.store(high_ptr + channel * splits + split, most, mask=channel < channels)
    else:
        tl.store(low_ptr + program, least)
        tl.store(high_ptr + program, most)


@triton.jit
def finish_kernel(
    low_ptr, high_ptr, min_ptr, max_ptr, splits, SYMMETRIC: tl.constexpr, SPLITS: tl.constexpr
):
    """Reduces one channel's partials."""
    channel = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    mask = split < splits
    low = tl.load(low_ptr + channel * splits + split, mask=mask, other=float("inf"))
    high = tl.load(high_ptr + channel * splits + split, mask=mask, other=float("-inf"))
    range_min = minimum_of(low, 0)
    range_max = maximum_of(high, 0)
    if SYMMETRIC:
        range_min, range_max = symmetric_range(range_min, range_max)
    tl.store(min_ptr + channel, range_min)
    tl.store(max_ptr + channel, range_max)


def find_range(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    layout: Layout,
    symmetric: bool,
) -> None:
    """Writes each channel's range, in two stages where that helps."""
    outer, channels, inner = layout
    tile, warps = block_shape("ranges_kernel", x.dtype, layout_name(layout.by_column))
    if layout.by_column:
        columns = min(power_of_two(channels), 64)
        groups = triton.cdiv(channels, columns)
        rows = min(power_of_two(outer), tile // columns)
        tiles = triton.cdiv(outer, rows)
    else:
        columns = min(power_of_two(inner), tile)
        groups = channels
        rows = min(power_of_two(outer), tile // columns)
        tiles = triton.cdiv(outer, rows) * triton.cdiv(inner, columns)
    wanted = triton.cdiv(TARGET_PROGRAMS, groups)
    splits = max(1, min(triton.cdiv(tiles, 4), wanted, MAXIMUM_SPLITS))
    low, high = range_min, range_max
    if splits > 1:
        low, high = range_min.new_empty(2, channels * splits)
    ranges_kernel[(groups * splits,)](
        x, low, high, outer, channels, inner, splits,
        SYMMETRIC=symmetric and splits == 1, BY_COLUMN=layout.by_column, ROWS=rows, COLUMNS=columns,
        num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    if splits > 1:
        finish_kernel[(channels,)](
            low, high, range_min, range_max, splits,
            SYMMETRIC=symmetric, SPLITS=power_of_two(splits), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip


def fake_quantize_dynamic(
    x: torch.Tensor, bits: int, axis: int | None, groups: int | None, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `x` rounded to 2^bits levels over its own range, and that range.

    The range is 0-d, (channels,) with `axis` or (groups,); an empty tensor's is NaN.
    """
    shape = () if axis is None else (x.shape[axis] if groups is None else groups,)
    if x.numel() == 0:
        nothing = torch.full(shape, math.nan, dtype=torch.float32, device=x.device)
        return torch.empty_like(x), nothing, nothing.clone()
    x, layout = dense(x, axis, groups)
    range_min = torch.empty(shape, dtype=torch.float32, device=x.device)
    range_max = torch.empty_like(range_min)
    y = output_like(x)
    if layout.by_column:
        rows = power_of_two(layout.outer)
        columns = min(power_of_two(layout.channels), FUSED_CHANNELS)
        programs = triton.cdiv(layout.channels, columns)
    else:
        rows, columns = power_of_two(layout.outer), power_of_two(layout.inner)
        programs = layout.channels
    with on_device_of(x):
        if rows * columns <= FUSED_ELEMENTS:
            fused_kernel[(programs,)](
                x, y, range_min, range_max, *layout, float(2**bits - 1), float(2 ** (bits - 1)),
                SYMMETRIC=symmetric, BY_COLUMN=layout.by_column, ROWS=rows, COLUMNS=columns,
                num_warps=min(max(rows * columns // 512, 1), 16), enable_fp_fusion=False,
            )  # fmt: skip
            return finished(y, x), range_min, range_max
        find_range(x, range_min, range_max, layout, symmetric)
    launch(x, y, (range_min, range_max), bits, layout, Result.VALUES)
    return finished(y, x), range_min, range_max
