"""Losses on batch-normalisation statistics, of one layer and of a network, and their gradients.

Programs reduce parts of a channel; a program for each channel puts its parts together in a fixed
order and compares with the running statistics, and one adds what the channels lose. Inside a
program each lane keeps its own running mean and squared deviations of x minus the channel's first
element, so neither a mean far from zero nor one far from the running mean costs accuracy.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

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

TILE = 2048  # of the gradient
MOST_DEPTH = 4  # as far as `reciprocal` goes
PARTS = 256  # that a program puts together at a time
TERMS = 1024


@triton.jit
def reciprocal(number):
    """Returns 1 / number of 1 to 4, and 1 of 0: lanes that divide take longer than they add up."""
    some = tl.where(number > 1.0, 0.5, 1.0)
    return tl.where(number > 3.0, 0.25, tl.where(number > 2.0, 0.3333333432674408, some))


@triton.jit
def partials_kernel(
    x_ptr, partial_ptr, outer, channels, units, splits,
    BY_COLUMN: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (group, split) reduces every `splits`-th tile of DEPTH times ROWS by COLUMNS.

    A group is one channel, or COLUMNS of them when BY_COLUMN. What is innermost, channels or a
    piece of one, is `units` times UNIT long. Partials are (3, channels, splits): count, mean minus
    the first element, sum of squared deviations.
    """
    program = tl.program_id(0).to(tl.int64)
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
        origin = tl.load(x_ptr + tl.minimum(channel, channels - 1))[None, None, :]
    else:
        column_tiles = tl.cdiv(columns, COLUMNS)
        stride = columns * channels
        channel = group
        origin = tl.load(x_ptr + channel * columns)
        x_ptr += channel * columns
    origin = origin.to(tl.float32)
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
    step = splits * channels
    tl.store(target, total, mask=valid)
    tl.store(target + step, centre, mask=valid)
    tl.store(target + 2 * step, deviation, mask=valid)


@triton.jit
def finish_kernel(
    x_ptr, partial_ptr, running_mean_ptr, running_var_ptr, statistics_ptr, terms_ptr, weight,
    channels, first_stride, splits, row_stride, total, PARTS: tl.constexpr,
):  # fmt: skip
    """Statistics of one channel, in float64, and what it adds to each loss; `total` terms each."""
    channel = tl.program_id(0).to(tl.int64)
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
    mean = tl.load(x_ptr + channel * first_stride).to(tl.float64) + centre
    mean_error = mean - tl.load(running_mean_ptr + channel).to(tl.float64)
    tl.store(statistics_ptr + channel, mean)
    tl.store(statistics_ptr + row_stride + channel, mean_error)
    tl.store(statistics_ptr + 2 * row_stride + channel, var_error)
    tl.store(terms_ptr + channel, mean_error * mean_error / channels * weight)
    tl.store(terms_ptr + total + channel, var_error * var_error / channels * weight)


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
def gradient_kernel(
    x_ptr, y_ptr, statistics_ptr, mean_scale_ptr, var_scale_ptr, weight, rows, columns, channels,
    elements_per_channel, row_stride,
    MEAN: tl.constexpr, VAR: tl.constexpr, BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Offset + slope * (x - mean) over a tile of the (rows, columns) matrix.

    BY_COLUMN: rows = outer, columns = channels. Otherwise rows = outer * channels, columns = inner.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(columns, COLUMNS)
    row = (program // tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.minimum(column, columns - 1) if BY_COLUMN else row % channels
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

    offsets = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    y = (x - near) * slope + offset
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


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


def statistics_of(
    x: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    statistics: torch.Tensor,
    terms: torch.Tensor,
    weight: float,
) -> None:
    """Fills a layer's columns of `statistics` (3, channels of all layers) and `terms` (2, same)."""
    x, layout = dense(x, 1)
    outer, channels, inner = layout
    division = divide(layout, x.element_size())
    unit, splits = division.unit, division.splits
    partial = torch.empty(3, channels, splits, dtype=torch.float32, device=x.device)
    means, variances = (value.float().contiguous() for value in (running_mean, running_var))
    with on_device_of(x):
        partials_kernel[(division.groups * splits,)](
            x, partial, outer, channels, (channels if layout.by_column else inner) // unit, splits,
            BY_COLUMN=layout.by_column, UNIT=unit, DEPTH=division.depth, ROWS=division.rows,
            COLUMNS=division.columns, num_warps=WARPS,
        )  # fmt: skip
        finish_kernel[(channels,)](
            x, partial, means, variances, statistics, terms, weight, channels,
            1 if layout.by_column else inner, splits, statistics.stride(0), terms.stride(0),
            PARTS=min(power_of_two(splits), PARTS), num_warps=1,
        )  # fmt: skip


def total_of(terms: torch.Tensor, *, apart: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sums of both terms, or that of all, twice the same tensor."""
    first = terms.new_empty((), dtype=torch.float32)
    second = torch.empty_like(first) if apart else first
    with on_device_of(terms):
        total_kernel[(1,)](
            terms, first, second, terms.shape[1], APART=apart, TERMS=TERMS, num_warps=8
        )
    return first, second


def gradient_of(
    x: torch.Tensor,
    statistics: torch.Tensor,
    mean_scale: torch.Tensor | None,
    var_scale: torch.Tensor | None,
    weight: float,
) -> torch.Tensor:
    """Returns the gradient of one layer's input, given the gradients of its losses."""
    x, layout = dense(x, 1)
    y = output_like(x)
    if layout.by_column:
        rows, columns = layout.outer, layout.channels
    else:
        rows, columns = layout.outer * layout.channels, layout.inner
    tile_columns = min(power_of_two(columns), 256 if layout.by_column else 1024)
    tile_rows = TILE // tile_columns
    grid = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    with on_device_of(x):
        gradient_kernel[grid](
            x, y, statistics,
            statistics if mean_scale is None else mean_scale.float(),
            statistics if var_scale is None else var_scale.float(),
            weight, rows, columns, layout.channels, layout.outer * layout.inner,
            statistics.stride(0), MEAN=mean_scale is not None, VAR=var_scale is not None,
            BY_COLUMN=layout.by_column, ROWS=tile_rows, COLUMNS=tile_columns, num_warps=8,
        )  # fmt: skip
    return finished(y, x)


def bn_statistics_loss(
    x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `(mean_loss, var_loss, statistics)`."""
    statistics = torch.empty(3, x.shape[1], dtype=torch.float64, device=x.device)
    terms = torch.empty(2, x.shape[1], dtype=torch.float64, device=x.device)
    statistics_of(x, running_mean, running_var, statistics, terms, 1.0)
    mean_loss, var_loss = total_of(terms, apart=True)
    return mean_loss, var_loss, statistics


def bn_statistics_loss_backward(
    mean_loss: torch.Tensor | None,
    var_loss: torch.Tensor | None,
    x: torch.Tensor,
    statistics: torch.Tensor,
) -> torch.Tensor:
    """Returns the gradient of `x`, given those of the losses."""
    return gradient_of(x, statistics, mean_loss, var_loss, 1.0)


def bn_statistics_losses(
    inputs: Sequence[torch.Tensor],
    running_means: Sequence[torch.Tensor],
    running_vars: Sequence[torch.Tensor],
    weights: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(loss, statistics)`; two launches per layer and one more."""
    device, channels = inputs[0].device, [x.shape[1] for x in inputs]
    statistics = torch.empty(3, sum(channels), dtype=torch.float64, device=device)
    terms = torch.empty(2, sum(channels), dtype=torch.float64, device=device)
    parts = statistics.split(channels, 1), terms.split(channels, 1)
    layers = zip(inputs, running_means, running_vars, *parts, weights, strict=True)
    for layer in layers:
        statistics_of(*layer)
    return total_of(terms, apart=False)[0], statistics


def bn_statistics_losses_backward(
    loss: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    statistics: torch.Tensor,
    weights: Sequence[float],
) -> list[torch.Tensor]:
    """Returns the gradient of each input, given that of the loss."""
    parts = statistics.split([x.shape[1] for x in inputs], 1)
    return [
        gradient_of(x, part, loss, loss, weight)
        for x, part, weight in zip(inputs, parts, weights, strict=True)
    ]
