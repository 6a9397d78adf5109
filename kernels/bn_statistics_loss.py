"""Losses on batch-normalisation statistics, of one layer and of a network, and their gradients.

Programs reduce parts of a channel; a program for each channel puts its parts together in a fixed
order and compares with the running statistics, and one adds what the channels lose. Inside a
program each lane keeps its own running mean and squared deviations of x minus the channel's first
element (Welford), so neither a mean far from zero nor one far from the running mean costs accuracy.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layout import (
    dense,
    finished,
    on_device_of,
    output_like,
    power_of_two,
)

TILE = 2048
TARGET_PROGRAMS = 2048
TERMS = 1024


@triton.jit
def partials_kernel(
    x_ptr, partial_ptr, outer, channels, inner, splits,
    BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (group, split) reduces every `splits`-th tile.

    A group is one channel, or COLUMNS of them when BY_COLUMN. Partials are (3, channels, splits):
    count, mean minus the first element, sum of squared deviations.
    """
    program = tl.program_id(0).to(tl.int64)
    group = program // splits
    split = program % splits
    columns = channels if BY_COLUMN else inner
    column_tiles = 1 if BY_COLUMN else tl.cdiv(inner, COLUMNS)
    tiles = tl.cdiv(outer, ROWS) * column_tiles
    if BY_COLUMN:
        channel = group * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.load(x_ptr + tl.minimum(channel, channels - 1))[None, :]
    else:
        channel = group
        first = tl.load(x_ptr + channel * inner)
    first = first.to(tl.float32)
    # Channels side by side have their elements in the same rows: one count for all saves registers.
    count = tl.zeros((ROWS, 1 if BY_COLUMN else COLUMNS), tl.float32)
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    deviation = tl.zeros((ROWS, COLUMNS), tl.float32)
    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
        column = (group if BY_COLUMN else tile % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
        if BY_COLUMN:
            offsets = row[:, None] * channels + column[None, :]
        else:
            offsets = (row[:, None] * channels + group) * inner + column[None, :]
        mask = (row < outer)[:, None] & (column < columns)[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) - first
        delta = tl.where(mask, x - mean, 0.0)
        count += tl.where((row < outer)[:, None] if BY_COLUMN else mask, 1.0, 0.0)
        mean += delta / tl.maximum(count, 1.0)
        deviation += delta * tl.where(mask, x - mean, 0.0)
        tile += splits
    axis: tl.constexpr = 0 if BY_COLUMN else None
    total = tl.sum(count, axis)
    centre = tl.sum(count * mean, axis) / tl.maximum(total, 1.0)
    difference = mean - (centre[None, :] if BY_COLUMN else centre)
    deviation = tl.sum(deviation + count * difference * difference, axis)
    target = partial_ptr + channel * splits + split
    step = splits * channels
    if BY_COLUMN:
        tl.store(target, tl.broadcast_to(total, (COLUMNS,)), mask=channel < channels)
        tl.store(target + step, centre, mask=channel < channels)
        tl.store(target + 2 * step, deviation, mask=channel < channels)
    else:
        tl.store(target, total)
        tl.store(target + step, centre)
        tl.store(target + 2 * step, deviation)


@triton.jit
def finish_kernel(
    x_ptr, partial_ptr, running_mean_ptr, running_var_ptr, statistics_ptr, terms_ptr, weight,
    channels, first_stride, splits, row_stride, total, SPLITS: tl.constexpr,
):  # fmt: skip
    """Statistics of one channel, in float64, and what it adds to each loss; `total` terms each."""
    channel = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    mask = split < splits
    source = partial_ptr + channel * splits + split
    step = (channel * 0 + channels) * splits
    count = tl.load(source, mask=mask, other=0.0).to(tl.float64)
    means = tl.load(source + step, mask=mask, other=0.0).to(tl.float64)
    squares = tl.load(source + 2 * step, mask=mask, other=0.0).to(tl.float64)
    number = tl.sum(count, 0)
    centre = tl.sum(count * means, 0) / number
    distance = means - centre
    deviation = tl.sum(squares + count * distance * distance, 0)
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
    if layout.by_column:
        columns = min(power_of_two(channels), 64)
        rows = TILE // columns
        groups, tiles = triton.cdiv(channels, columns), triton.cdiv(outer, rows)
    else:
        columns = min(power_of_two(inner), TILE)
        rows = min(power_of_two(outer), max(TILE // columns, 1))
        groups, tiles = channels, triton.cdiv(outer, rows) * triton.cdiv(inner, columns)
    splits = min(triton.cdiv(tiles, 4), triton.cdiv(TARGET_PROGRAMS, groups))
    partial = torch.empty(3, channels, splits, dtype=torch.float32, device=x.device)
    means, variances = (value.float().contiguous() for value in (running_mean, running_var))
    with on_device_of(x):
        partials_kernel[(groups * splits,)](
            x, partial, outer, channels, inner, splits,
            BY_COLUMN=layout.by_column, ROWS=rows, COLUMNS=columns, num_warps=8,
        )  # fmt: skip
        finish_kernel[(channels,)](
            x, partial, means, variances, statistics, terms, weight, channels,
            1 if layout.by_column else inner, splits, statistics.stride(0), terms.stride(0),
            SPLITS=power_of_two(splits), num_warps=1,
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
            BY_COLUMN=layout.by_column, ROWS=tile_rows, COLUMNS=tile_columns, num_warps=4,
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
