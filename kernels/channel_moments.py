"""Mean and variance of every channel of every image, and their gradient.

Each lane of a program sums differences from its first value; the lanes merge relative to the
channel's first value, and parts of a channel merge in float64.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layout import (
    finished,
    image_layout,
    on_device_of,
    output_like,
    power_of_two,
)

TILE = 1024
MAXIMUM_COLUMNS = 64  # channels side by side where they are innermost
TARGET_PROGRAMS = 1024
MAXIMUM_SPLITS = 64


@triton.jit
def usable_centre(value):
    """Returns something near the values to subtract; an infinity or NaN would hide the others."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def moments_kernel(
    x_ptr, mean_ptr, variance_ptr, partial_ptr, rows, columns, total, splits,
    INNERMOST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Program (group, split) reduces every `splits`-th tile; WHOLE: the only one, to the moments.

    A group is ROWS rows, all of which are `total`; with channels innermost it is COLUMNS columns of
    one sample. Partials are (3, channels of all samples, splits): count, sum, squared deviations.
    """
    program = tl.program_id(0).to(tl.int64)
    group = program // splits
    split = program % splits
    groups = tl.cdiv(columns, COLUMNS)
    if INNERMOST:
        lane_column = (group % groups) * COLUMNS + tl.arange(0, COLUMNS)
        place = group // groups * columns + lane_column
        valid = lane_column < columns
        start = group // groups * rows * columns + lane_column
    else:
        place = group * ROWS + tl.arange(0, ROWS)
        valid = place < total
        start = place * columns
    origin = usable_centre(tl.load(x_ptr + start, mask=valid, other=0.0).to(tl.float32))
    shift = origin[None, :] if INNERMOST else origin[:, None]
    count = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    centre = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    first = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    second = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    tiles = tl.cdiv(rows, ROWS) if INNERMOST else groups
    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        if INNERMOST:
            row = tile * ROWS + tl.arange(0, ROWS)
            column = (group % groups) * COLUMNS + tl.arange(0, COLUMNS)
            mask = (row < rows)[:, None] & (column < columns)[None, :]
            row += group // groups * rows
        else:
            row = group * ROWS + tl.arange(0, ROWS)
            column = tile * COLUMNS + tl.arange(0, COLUMNS)
            mask = (row < total)[:, None] & (column < columns)[None, :]
        offsets = row[:, None] * columns + column[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        centre = tl.where(count > 0.0, centre, usable_centre(x))
        difference = tl.where(mask, x - centre, 0.0)
        count += tl.where(mask, 1.0, 0.0)
        first += difference
        second += difference * difference
        tile += splits
    axis: tl.constexpr = 0 if INNERMOST else 1
    # Of each lane, relative to the channel's first value.
    own_mean = centre - shift + first / tl.maximum(count, 1.0)
    deviation = second - first * first / tl.maximum(count, 1.0)
    number = tl.sum(count, axis)
    difference_sum = tl.sum(tl.where(count > 0.0, count * (centre - shift) + first, 0.0), axis)
    mean = difference_sum / tl.maximum(number, 1.0)
    distance = own_mean - (mean[None, :] if INNERMOST else mean[:, None])
    deviation = tl.where(count > 0.0, deviation + count * distance * distance, 0.0)
    deviation = tl.maximum(tl.sum(deviation, axis), 0.0, propagate_nan=tl.PropagateNan.ALL)
    if WHOLE:
        tl.store(mean_ptr + place, mean + origin, mask=valid)
        tl.store(variance_ptr + place, deviation / tl.maximum(number, 1.0), mask=valid)
    else:
        target = partial_ptr + place * splits + split
        number = number.to(tl.float64)
        tl.store(target, number, mask=valid)
        sum_of_x = difference_sum.to(tl.float64) + number * origin.to(tl.float64)
        tl.store(target + total * splits, sum_of_x, mask=valid)
        tl.store(target + 2 * total * splits, deviation.to(tl.float64), mask=valid)


@triton.jit
def finish_moments_kernel(partial_ptr, mean_ptr, variance_ptr, total, splits, SPLITS: tl.constexpr):
    """Merges the parts of one channel of one sample."""
    group = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    mask = split < splits
    source = partial_ptr + group * splits + split
    count = tl.load(source, mask=mask, other=0.0)
    sums = tl.load(source + total * splits, mask=mask, other=0.0)
    deviation = tl.load(source + 2 * total * splits, mask=mask, other=0.0)
    number = tl.sum(count, 0)
    mean = tl.sum(sums, 0) / number
    distance = sums / tl.maximum(count, 1.0) - mean
    deviation += tl.where(mask, count * distance * distance, 0.0)
    tl.store(mean_ptr + group, mean.to(tl.float32))
    tl.store(variance_ptr + group, (tl.sum(deviation, 0) / number).to(tl.float32))


@triton.jit
def moments_backward_kernel(
    x_ptr, centre_ptr, mean_ptr, variance_ptr, y_ptr, rows, columns, sample_rows, count,
    HAS_MEAN: tl.constexpr, HAS_VARIANCE: tl.constexpr,
    INNERMOST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program handles a tile of the (rows of all samples, columns) matrix."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(columns, COLUMNS)
    row = (program // tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    offsets = row[:, None] * columns + column[None, :]
    if INNERMOST:
        group = (row // sample_rows)[:, None] * columns + column[None, :]
        valid = mask
    else:
        group = row[:, None]
        valid = (row < rows)[:, None]
    y = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    if HAS_VARIANCE:
        x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
        centre = tl.load(centre_ptr + group, mask=valid)
        y = (x - centre) * (tl.load(variance_ptr + group, mask=valid) * 2.0 / count)
    if HAS_MEAN:
        y = y + tl.load(mean_ptr + group, mask=valid) / count
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean and the variance, both `(B, C)` in float32."""
    mean, variance = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return mean.fill_(float("nan")), variance.fill_(float("nan"))
    x, shape = image_layout(x)
    if shape.innermost:
        columns = min(power_of_two(shape.columns), MAXIMUM_COLUMNS)
        rows = min(power_of_two(shape.rows), TILE // columns)
        groups = shape.samples * triton.cdiv(shape.columns, columns)
        tiles = triton.cdiv(shape.rows, rows)
    else:
        columns = min(power_of_two(shape.columns), TILE)
        rows = TILE // columns
        groups = triton.cdiv(shape.samples * shape.rows, rows)
        tiles = triton.cdiv(shape.columns, columns)
    wanted = triton.cdiv(TARGET_PROGRAMS, groups)
    splits = max(1, min(triton.cdiv(tiles, 4), wanted, MAXIMUM_SPLITS))
    total = mean.numel()
    partials = mean if splits == 1 else mean.new_empty(3, total * splits, dtype=torch.float64)
    with on_device_of(x):
        moments_kernel[(groups * splits,)](
            x, mean, variance, partials, shape.rows, shape.columns, total, splits,
            INNERMOST=shape.innermost, ROWS=rows, COLUMNS=columns, WHOLE=splits == 1, num_warps=4,
        )  # fmt: skip
        if splits > 1:
            finish_moments_kernel[(total,)](
                partials, mean, variance, total, splits, SPLITS=power_of_two(splits), num_warps=1
            )
    return mean, variance


def channel_moments_backward(
    of_mean: torch.Tensor | None,
    of_variance: torch.Tensor | None,
    x: torch.Tensor,
    mean: torch.Tensor,
) -> torch.Tensor:
    """Returns the gradient of `x` in its dtype and layout."""
    result = torch.empty_like(x)
    if x.numel() == 0:
        return result
    x, shape = image_layout(x)
    y = output_like(x)
    rows, columns = shape.samples * shape.rows, shape.columns
    tile_columns = min(power_of_two(columns), 256 if shape.innermost else TILE)
    tile_rows = TILE // tile_columns
    programs = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    gradients = [x if value is None else value.contiguous() for value in (of_mean, of_variance)]
    with on_device_of(x):
        moments_backward_kernel[programs](
            x, mean.contiguous(), *gradients, y, rows, columns, shape.rows, float(shape.positions),
            HAS_MEAN=of_mean is not None, HAS_VARIANCE=of_variance is not None,
            INNERMOST=shape.innermost, ROWS=tile_rows, COLUMNS=tile_columns, num_warps=4,
        )  # fmt: skip
    y = finished(y, x)
    return y if y.stride() == result.stride() else result.copy_(y)
