"""Losses on the batch-normalisation statistics of one layer, and their gradient.

Programs reduce parts of a channel; a program for each channel puts its parts together in a fixed
order and compares with the running statistics, and one adds what the channels lose. Inside a
program each lane keeps its own running mean and squared deviations of x minus the channel's first
element, so neither a mean far from zero nor one far from the running mean costs accuracy.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape, layout_name
from synq_fast.kernels._layout import (
    Layout,
    dense,
    finished,
    on_device_of,
    output_like,
    power_of_two,
)
from synq_fast.kernels._tiles import (
    MAXIMUM_COLUMNS,
    WARPS,
    Division,
    elements_at_once,
    splits_of,
)

MOST_DEPTH = 4  # as far as `reciprocal` goes
PARTS = 256  # that a program puts together at a time
TERMS = 1024
GRADIENT_COLUMNS = 1024
GRADIENT_TILES = 8  # of a program, which finds the slopes of its channels once
GRADIENT_PROGRAMS = 512


@triton.jit
def reciprocal(number):
    """Returns 1 / number of 1 to 4, and 1 of 0: lanes that divide take longer than they add up."""
    some = tl.where(number > 1.0, 0.5, 1.0)
    return tl.where(number > 3.0, 0.25, tl.where(number > 2.0, 0.3333333432674408, some))


@triton.jit
def reduce_part(
    x_ptr, partial_ptr, program, outer, channels, units, splits,
    BY_COLUMN: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (group, split) reduces every `splits`-th tile of DEPTH times ROWS by COLUMNS.

    A group is one channel, or COLUMNS of them when BY_COLUMN. What is innermost, channels or a
    piece of one, is `units` times UNIT long. Partials are (3, channels, splits): count, mean minus
    the first element, sum of squared deviations; behind them are the first elements.
    """
    group = program // splits
    split = program % splits
    # Lanes are (ROWS, 1, COLUMNS): the compiler spreads the middle over threads last, if at all.
    lane_row = tl.arange(0, ROWS)[:, None, None]
    lane_column = tl.arange(0, COLUMNS)[None, None, :]
    depth = tl.arange(0, DEPTH)[None, :, None] * ROWS
    columns = units * UNIT
    if BY_COLUMN:
        column_tiles = 1
        stride = columns
        channel = group * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.load(x_ptr + tl.minimum(channel, channels - 1)).to(tl.float32)
        origin = first[None, None, :]
    else:
        column_tiles = tl.cdiv(columns, COLUMNS)
        stride = columns * channels
        channel = group
        first = tl.load(x_ptr + channel * columns).to(tl.float32)
        origin = first
        x_ptr += channel * columns
    tiles = tl.cdiv(outer, DEPTH * ROWS) * column_tiles
    # Channels side by side have their elements in the same rows: one count for all.
    count = tl.zeros((ROWS, 1, 1 if BY_COLUMN else COLUMNS), tl.float32)
    mean = tl.zeros((ROWS, 1, COLUMNS), tl.float32)
    deviation = tl.zeros((ROWS, 1, COLUMNS), tl.float32)
    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        row = (tile // column_tiles) * (DEPTH * ROWS)
        column = (group if BY_COLUMN else tile % column_tiles) * COLUMNS + lane_column
        left = tl.minimum(outer - row, DEPTH * ROWS).to(tl.int32)
        mask = (lane_row + depth < left) & (column < columns)
        offsets = (row + lane_row + depth) * stride + column
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        # Not by a sum: the compiler would move it from thread to thread.
        added = tl.maximum((left - lane_row + ROWS - 1) // ROWS, 0).to(tl.float32)
        x = tl.where(mask, x - origin, 0.0)
        # Of the lane's values in this tile, then with those before (Chan, Golub and LeVeque).
        centre = tl.sum(x, 1, keep_dims=True) * reciprocal(added)
        if not BY_COLUMN:
            added = tl.where(column < columns, added, 0.0)
        distance = tl.where(mask, x - centre, 0.0)
        before = count
        count += added
        share = added / tl.maximum(count, 1.0)
        delta = tl.where(added > 0.0, centre - mean, 0.0)
        mean += delta * share
        deviation += tl.sum(distance * distance, 1, keep_dims=True)
        deviation += delta * delta * (before * share)
        tile += splits
    if BY_COLUMN:
        total = tl.sum(count)
        centre = tl.sum(count * mean, 0, keep_dims=True) / tl.maximum(total, 1.0)
        difference = mean - centre
        deviation = tl.sum(deviation + count * difference * difference, 0, keep_dims=True)
        total = tl.zeros((COLUMNS,), tl.float32) + total
        centre = tl.reshape(centre, (COLUMNS,))
        deviation = tl.reshape(deviation, (COLUMNS,))
        valid = channel < channels
    else:
        total = tl.sum(count)
        centre = tl.sum(count * mean) / tl.maximum(total, 1.0)
        difference = mean - centre
        deviation = tl.sum(deviation + count * difference * difference)
        valid = channel < channels
    target = partial_ptr + channel * splits + split
    step = (split * 0 + splits) * channels
    tl.store(target, total, mask=valid)
    tl.store(target + step, centre, mask=valid)
    tl.store(target + 2 * step, deviation, mask=valid)
    tl.store(partial_ptr + 3 * step + channel, first, mask=valid & (split == 0))


@triton.jit
def partials_kernel(
    x_ptr, partial_ptr, outer, channels, units, splits,
    BY_COLUMN: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """The parts of one layer."""
    reduce_part(
        x_ptr, partial_ptr, tl.program_id(0).to(tl.int64), outer, channels, units, splits,
        BY_COLUMN, UNIT, DEPTH, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def finish_channel(
    partial_ptr, running_mean_ptr, running_var_ptr, statistics_ptr, terms_ptr, weight, channel,
    channels, splits, row_stride, total, PARTS: tl.constexpr,
):  # fmt: skip
    """Statistics of one channel, in float64, and what it adds to each loss; `total` terms each."""
    source = partial_ptr + channel * splits
    step = (channel * 0 + channels) * splits
    counts = tl.zeros((PARTS,), tl.float64)
    sums = tl.zeros((PARTS,), tl.float64)
    first = 0
    while first < splits:  # all parts at once would not fit the registers
        split = first + tl.arange(0, PARTS)
        mask = split < splits
        count = tl.load(source + split, mask=mask, other=0.0).to(tl.float64)
        counts += count
        sums += count * tl.load(source + step + split, mask=mask, other=0.0).to(tl.float64)
        first += PARTS
    number = tl.sum(counts, 0)
    centre = tl.sum(sums, 0) / number
    squares = tl.zeros((PARTS,), tl.float64)
    first = 0
    while first < splits:
        split = first + tl.arange(0, PARTS)
        mask = split < splits
        count = tl.load(source + split, mask=mask, other=0.0).to(tl.float64)
        distance = tl.load(source + step + split, mask=mask, other=0.0).to(tl.float64) - centre
        squares += tl.load(source + 2 * step + split, mask=mask, other=0.0).to(tl.float64)
        squares += tl.where(mask, count * distance * distance, 0.0)
        first += PARTS
    deviation = tl.sum(squares, 0)
    var_error = deviation / number - tl.load(running_var_ptr + channel).to(tl.float64)
    mean = tl.load(partial_ptr + 3 * step + channel).to(tl.float64) + centre
    mean_error = mean - tl.load(running_mean_ptr + channel).to(tl.float64)
    tl.store(statistics_ptr + channel, mean)
    tl.store(statistics_ptr + row_stride + channel, mean_error)
    tl.store(statistics_ptr + 2 * row_stride + channel, var_error)
    tl.store(terms_ptr + channel, mean_error * mean_error / channels * weight)
    tl.store(terms_ptr + total + channel, var_error * var_error / channels * weight)


@triton.jit
def finish_kernel(
    partial_ptr, running_mean_ptr, running_var_ptr, statistics_ptr, terms_ptr, weight, channels,
    splits, row_stride, total, PARTS: tl.constexpr,
):  # fmt: skip
    """A channel of one layer."""
    finish_channel(
        partial_ptr, running_mean_ptr, running_var_ptr, statistics_ptr, terms_ptr, weight,
        tl.program_id(0).to(tl.int64), channels, splits, row_stride, total, PARTS,
    )  # fmt: skip


@triton.jit
def total_kernel(terms_ptr, mean_ptr, var_ptr, channels, APART: tl.constexpr, TERMS: tl.constexpr):
    """Adds up both losses: APART, or as one at the first place."""
    means = tl.zeros((TERMS,), tl.float64)
    variances = tl.zeros((TERMS,), tl.float64)
    start = tl.program_id(0).to(tl.int64) * 0
    while start < channels:
        channel = start + tl.arange(0, TERMS)
        mask = channel < channels
        means += tl.load(terms_ptr + channel, mask=mask, other=0.0)
        variances += tl.load(terms_ptr + channels + channel, mask=mask, other=0.0)
        start += TERMS
    if APART:
        tl.store(mean_ptr, tl.sum(means, 0).to(tl.float32))
        tl.store(var_ptr, tl.sum(variances, 0).to(tl.float32))
    else:
        tl.store(mean_ptr, tl.sum(means + variances, 0).to(tl.float32))


@triton.jit
def write_gradient(
    x_ptr, y_ptr, statistics_ptr, mean_scale_ptr, var_scale_ptr, weight, program, rows, channels,
    elements_per_channel, units, splits, row_stride,
    MEAN: tl.constexpr, VAR: tl.constexpr, BY_COLUMN: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Offset + slope * (x - mean) over every `splits`-th tile of a group of the matrix.

    Its rows are `units` times UNIT long. A group is COLUMNS of them when BY_COLUMN, where channels
    follow each other along a row, perhaps several times; otherwise ROWS, pieces of a channel each.
    """
    group = program // splits
    split = program % splits
    columns = units * UNIT
    if BY_COLUMN:
        place = group * COLUMNS + tl.arange(0, COLUMNS)
        tiles = tl.cdiv(rows, ROWS)
    else:
        place = group * ROWS + tl.arange(0, ROWS)
        tiles = tl.cdiv(columns, COLUMNS)
    channel = place % channels
    mean = tl.load(statistics_ptr + channel)
    near = mean.to(tl.float32)
    factor = weight * 2.0 / channels / elements_per_channel
    slope = tl.zeros_like(mean)
    offset = tl.zeros_like(mean)
    if VAR:
        var_error = tl.load(statistics_ptr + 2 * row_stride + channel)
        slope = 2.0 * factor * tl.load(var_scale_ptr) * var_error
        # What is left of the mean beyond its float32 value.
        offset -= slope * (mean - near.to(tl.float64))
    if MEAN:
        mean_error = tl.load(statistics_ptr + row_stride + channel)
        offset += factor * tl.load(mean_scale_ptr) * mean_error
    slope = slope.to(tl.float32)
    offset = offset.to(tl.float32)
    near = near[None, :] if BY_COLUMN else near[:, None]
    slope = slope[None, :] if BY_COLUMN else slope[:, None]
    offset = offset[None, :] if BY_COLUMN else offset[:, None]

    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        row = tile * ROWS + tl.arange(0, ROWS) if BY_COLUMN else place
        column = place if BY_COLUMN else tile * COLUMNS + tl.arange(0, COLUMNS)
        offsets = row[:, None] * columns + column[None, :]
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
        y = (x - near) * slope + offset
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        tile += splits


@triton.jit
def gradient_kernel(
    x_ptr, y_ptr, statistics_ptr, mean_scale_ptr, var_scale_ptr, weight, rows, channels,
    elements_per_channel, units, splits, row_stride,
    MEAN: tl.constexpr, VAR: tl.constexpr, BY_COLUMN: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of one layer."""
    write_gradient(
        x_ptr, y_ptr, statistics_ptr, mean_scale_ptr, var_scale_ptr, weight,
        tl.program_id(0).to(tl.int64), rows, channels, elements_per_channel, units, splits,
        row_stride, MEAN, VAR, BY_COLUMN, UNIT, ROWS, COLUMNS,
    )  # fmt: skip


def divide(layout: Layout, size: int) -> Division:
    """Returns how memory with elements of `size` bytes is divided; tiles are deep along `outer`."""
    outer, channels, inner = layout
    tile = elements_at_once(size)
    length = channels if layout.by_column else inner
    columns = min(power_of_two(length), MAXIMUM_COLUMNS if layout.by_column else tile)
    rows = min(power_of_two(outer), tile // columns)
    depth = min(power_of_two(triton.cdiv(outer, rows)), MOST_DEPTH)
    groups = triton.cdiv(channels, columns) if layout.by_column else channels
    tiles = triton.cdiv(outer, rows) * (1 if layout.by_column else triton.cdiv(inner, columns))
    unit = math.gcd(length, 16 // size)
    return Division(unit, depth, rows, columns, groups, splits_of(groups, tiles))


class GradientDivision(NamedTuple):
    """Tiles of `tile_rows` by `tile_columns` of a matrix with rows of `units` times `unit`.

    Programs are `groups` by `splits`, of `warps` each.
    """

    rows: int
    units: int
    unit: int
    tile_rows: int
    tile_columns: int
    groups: int
    splits: int
    warps: int


def divide_gradient(layout: Layout, dtype: torch.dtype) -> GradientDivision:
    """Returns how a gradient is divided, which changes no bit of it."""
    outer, channels, inner = layout
    tile, warps = block_shape("gradient_kernel", dtype, layout_name(layout.by_column))
    if layout.by_column:
        # Rows of few channels lie side by side, so that layers of any width share a launch.
        fitting = max(MAXIMUM_COLUMNS // channels, 1)
        repeats = math.gcd(outer, 1 << fitting.bit_length() - 1)
        rows, columns, tile_columns = outer // repeats, channels * repeats, MAXIMUM_COLUMNS
    else:
        rows, columns = outer * channels, inner
        tile_columns = min(power_of_two(columns), tile, GRADIENT_COLUMNS)
    tile_rows = tile // tile_columns
    groups, tiles = triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns)
    if layout.by_column:
        groups, tiles = tiles, groups
    # Where there are few, programs count for more than what each does once.
    splits = min(tiles, max(triton.cdiv(tiles, GRADIENT_TILES), GRADIENT_PROGRAMS // groups))
    unit = math.gcd(columns, 16 // dtype.itemsize)
    return GradientDivision(
        rows, columns // unit, unit, tile_rows, tile_columns, groups, splits, warps
    )


def parts_of(channels: int, splits: int) -> int:
    """Returns how many numbers describe a layer's parts: three each, and each first element."""
    return channels * (3 * splits + 1)


def bn_statistics_loss(
    x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `(mean_loss, var_loss, statistics)`."""
    x, layout = dense(x, 1)
    outer, channels, inner = layout
    unit, depth, rows, columns, groups, splits = divide(layout, x.element_size())
    statistics = torch.empty(3, channels, dtype=torch.float64, device=x.device)
    terms = torch.empty(2, channels, dtype=torch.float64, device=x.device)
    partial = torch.empty(parts_of(channels, splits), dtype=torch.float32, device=x.device)
    means, variances = (value.float().contiguous() for value in (running_mean, running_var))
    with on_device_of(x):
        partials_kernel[(groups * splits,)](
            x, partial, outer, channels, (channels if layout.by_column else inner) // unit, splits,
            BY_COLUMN=layout.by_column, UNIT=unit, DEPTH=depth, ROWS=rows, COLUMNS=columns,
            num_warps=WARPS,
        )  # fmt: skip
        finish_kernel[(channels,)](
            partial, means, variances, statistics, terms, 1.0, channels, splits,
            statistics.stride(0), channels, PARTS=PARTS, num_warps=1,
        )  # fmt: skip
    return *total_of(terms, apart=True), statistics


def total_of(terms: torch.Tensor, *, apart: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sums of both terms, or that of all, twice the same tensor."""
    first = terms.new_empty((), dtype=torch.float32)
    second = torch.empty_like(first) if apart else first
    with on_device_of(terms):
        total_kernel[(1,)](
            terms, first, second, terms.shape[1], APART=apart, TERMS=TERMS, num_warps=8
        )
    return first, second


def bn_statistics_loss_backward(
    mean_loss: torch.Tensor | None,
    var_loss: torch.Tensor | None,
    x: torch.Tensor,
    statistics: torch.Tensor,
) -> torch.Tensor:
    """Returns the gradient of `x`, given those of the losses."""
    x, layout = dense(x, 1)
    y = output_like(x)
    division = divide_gradient(layout, x.dtype)
    with on_device_of(x):
        gradient_kernel[(division.groups * division.splits,)](
            x, y, statistics,
            statistics if mean_loss is None else mean_loss.float(),
            statistics if var_loss is None else var_loss.float(),
            1.0, division.rows, layout.channels, layout.outer * layout.inner, division.units,
            division.splits, statistics.stride(0),
            MEAN=mean_loss is not None, VAR=var_loss is not None, BY_COLUMN=layout.by_column,
            UNIT=division.unit, ROWS=division.tile_rows, COLUMNS=division.tile_columns,
            num_warps=division.warps,
        )  # fmt: skip
    return finished(y, x)
