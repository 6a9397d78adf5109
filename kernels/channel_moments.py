"""Mean and variance of every channel of every image, and their gradient.

Each lane of a program sums differences from its first value; the lanes merge relative to the
channel's first value, and parts of a channel merge in float64.
"""

import math

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape, layout_name
from synq_fast.kernels._layout import (
    ImageLayout,
    finished,
    image_layout,
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

GRADIENT_COLUMNS = 1024
PARTS = 128  # that a program puts together at a time


@triton.jit
def usable_centre(value):
    """Returns something near the values to subtract; an infinity or NaN would hide the others."""
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def moments_kernel(
    x_ptr, mean_ptr, variance_ptr, partial_ptr, rows, column_units, total, splits,
    INNERMOST: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Program (group, split) reduces every `splits`-th tile; WHOLE: the only one, to the moments.

    A group is ROWS rows, all of which are `total`; with channels innermost it is COLUMNS columns of
    one sample. A tile is DEPTH times as long, so that as many loads of a lane wait together. A row
    has `column_units` times UNIT columns. Partials are (3, channels of all samples, splits): count,
    sum, squared deviations.
    """
    columns = column_units * UNIT
    program = tl.program_id(0).to(tl.int64)
    group = program // splits
    split = program % splits
    groups = tl.cdiv(columns, COLUMNS)
    # Lanes are (ROWS, 1, COLUMNS): the compiler spreads the middle over threads last, if at all.
    lane_row = tl.arange(0, ROWS)[:, None, None]
    lane_column = tl.arange(0, COLUMNS)[None, None, :]
    if INNERMOST:
        sample = group // groups
        column = (group % groups) * COLUMNS + tl.arange(0, COLUMNS)
        place = sample * columns + column
        valid = column < columns
        x_ptr += sample * rows * columns
        origin = tl.load(x_ptr + column, mask=valid, other=0.0)
        shift = usable_centre(origin.to(tl.float32))[None, None, :]
        lanes = lane_row * columns + column[None, None, :]
        in_group = valid[None, None, :]
        number = lane_row
        length, step, stride = rows, ROWS, columns
    else:
        place = group * ROWS + tl.arange(0, ROWS)
        valid = place < total
        origin = tl.load(x_ptr + place * columns, mask=valid, other=0.0)
        shift = usable_centre(origin.to(tl.float32))[:, None, None]
        lanes = place[:, None, None] * columns + lane_column
        in_group = valid[:, None, None]
        number = lane_column
        length, step, stride = columns, COLUMNS, 1
    # Where the program is in the dimension along which tiles are deep.
    at = split * (DEPTH * step)
    begins = in_group & (at + number < length)
    centre = usable_centre(
        tl.load(x_ptr + lanes + at * stride, mask=begins, other=0.0).to(tl.float32)
    )
    depth = tl.arange(0, DEPTH)[None, :, None] * step
    count = tl.zeros(number.shape, tl.float32)
    first = tl.zeros((ROWS, 1, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, 1, COLUMNS), tl.float32)
    while at < length:  # the interpreter cannot run `range` over tensors with every NumPy
        left = tl.minimum(length - at, DEPTH * step).to(tl.int32)
        mask = (number + depth < left) & in_group
        x = tl.load(x_ptr + at * stride + (lanes + depth * stride), mask=mask, other=0.0)
        difference = tl.where(mask, x.to(tl.float32) - centre, 0.0)
        # Not by a sum: the compiler would move it from thread to thread.
        count += tl.maximum((left - number + step - 1) // step, 0).to(tl.float32)
        first += tl.sum(difference, 1, keep_dims=True)
        second += tl.sum(difference * difference, 1, keep_dims=True)
        at += splits * (DEPTH * step)
    across: tl.constexpr = 0 if INNERMOST else 2
    # Of each lane, relative to the channel's first value.
    divisor = tl.maximum(count, 1.0)
    own_mean = centre - shift + first / divisor
    deviation = second - first * first / divisor
    values = tl.sum(count)
    own_sum = tl.where(count > 0.0, count * (centre - shift) + first, 0.0)
    difference_sum = tl.sum(own_sum, across, keep_dims=True)
    distance = own_mean - difference_sum / tl.maximum(values, 1.0)
    deviation = tl.where(count > 0.0, deviation + count * distance * distance, 0.0)
    difference_sum = tl.reshape(difference_sum, place.shape)
    mean = difference_sum / tl.maximum(values, 1.0)
    deviation = tl.reshape(tl.sum(deviation, across, keep_dims=True), place.shape)
    deviation = tl.maximum(deviation, 0.0, propagate_nan=tl.PropagateNan.ALL)
    origin = usable_centre(origin.to(tl.float32))
    if WHOLE:
        tl.store(mean_ptr + place, mean + origin, mask=valid)
        tl.store(variance_ptr + place, deviation / tl.maximum(values, 1.0), mask=valid)
    else:
        target = partial_ptr + place * splits + split
        values = values.to(tl.float64)
        sum_of_x = difference_sum.to(tl.float64) + values * origin.to(tl.float64)
        tl.store(target, tl.zeros_like(sum_of_x) + values, mask=valid)
        tl.store(target + total * splits, sum_of_x, mask=valid)
        tl.store(target + 2 * total * splits, deviation.to(tl.float64), mask=valid)


@triton.jit
def finish_moments_kernel(
    partial_ptr, mean_ptr, variance_ptr, total, splits,
    CHANNELS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Merges the parts of CHANNELS channels of samples, PARTS at a time."""
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < total
    source = partial_ptr + channel[:, None] * splits
    step = (channel[:, None] * 0 + total) * splits
    count = tl.zeros((CHANNELS, PARTS), tl.float64)
    sums = tl.zeros((CHANNELS, PARTS), tl.float64)
    first = 0
    while first < splits:
        split = first + tl.arange(0, PARTS)[None, :]
        mask = inside[:, None] & (split < splits)
        count += tl.load(source + split, mask=mask, other=0.0)
        sums += tl.load(source + step + split, mask=mask, other=0.0)
        first += PARTS
    number = tl.sum(count, 1)
    mean = tl.sum(sums, 1) / number
    deviation = tl.zeros((CHANNELS, PARTS), tl.float64)
    first = 0
    while first < splits:
        split = first + tl.arange(0, PARTS)[None, :]
        mask = inside[:, None] & (split < splits)
        count = tl.load(source + split, mask=mask, other=0.0)
        sums = tl.load(source + step + split, mask=mask, other=0.0)
        distance = sums / tl.maximum(count, 1.0) - mean[:, None]
        deviation += tl.load(source + 2 * step + split, mask=mask, other=0.0)
        deviation += tl.where(mask, count * distance * distance, 0.0)
        first += PARTS
    tl.store(mean_ptr + channel, mean.to(tl.float32), mask=inside)
    tl.store(variance_ptr + channel, (tl.sum(deviation, 1) / number).to(tl.float32), mask=inside)


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


def divide(shape: ImageLayout, size: int) -> Division:
    """Returns how memory with elements of `size` bytes is divided, deep along positions."""
    tile = elements_at_once(size)
    if shape.innermost:
        columns = min(power_of_two(shape.columns), MAXIMUM_COLUMNS)
        rows = min(power_of_two(shape.rows), tile // columns)
        groups = shape.samples * triton.cdiv(shape.columns, columns)
        tiles = triton.cdiv(shape.rows, rows)
    else:
        columns = min(power_of_two(shape.columns), tile)
        rows = tile // columns
        groups = triton.cdiv(shape.samples * shape.rows, rows)
        tiles = triton.cdiv(shape.columns, columns)
    depth = min(power_of_two(tiles), size)  # of halves, registers hold fewer once they are wide
    unit = math.gcd(shape.columns, 16 // size)
    return Division(unit, depth, rows, columns, groups, splits_of(groups, tiles))


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean and the variance, both `(B, C)` in float32."""
    mean, variance = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return mean.fill_(float("nan")), variance.fill_(float("nan"))
    x, shape = image_layout(x)
    division = divide(shape, x.element_size())
    splits, total = division.splits, mean.numel()
    partials = mean if splits == 1 else mean.new_empty(3, total * splits, dtype=torch.float64)
    with on_device_of(x):
        moments_kernel[(division.groups * splits,)](
            x, mean, variance, partials, shape.rows, shape.columns // division.unit, total, splits,
            INNERMOST=shape.innermost, UNIT=division.unit, DEPTH=division.depth,
            ROWS=division.rows, COLUMNS=division.columns, WHOLE=splits == 1, num_warps=WARPS,
        )  # fmt: skip
        if splits > 1:
            parts = min(power_of_two(splits), PARTS)
            channels = PARTS // parts
            finish_moments_kernel[(triton.cdiv(total, channels),)](
                partials, mean, variance, total, splits, CHANNELS=channels, PARTS=parts, num_warps=4
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
    elements, warps = block_shape("moments_backward_kernel", x.dtype, layout_name(shape.innermost))
    most = min(elements, 256 if shape.innermost else GRADIENT_COLUMNS)
    tile_columns = min(power_of_two(columns), most)
    tile_rows = elements // tile_columns
    programs = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    gradients = [x if value is None else value.contiguous() for value in (of_mean, of_variance)]
    with on_device_of(x):
        moments_backward_kernel[programs](
            x, mean.contiguous(), *gradients, y, rows, columns, shape.rows, float(shape.positions),
            HAS_MEAN=of_mean is not None, HAS_VARIANCE=of_variance is not None,
            INNERMOST=shape.innermost, ROWS=tile_rows, COLUMNS=tile_columns, num_warps=warps,
        )  # fmt: skip
    y = finished(y, x)
    return y if y.stride() == result.stride() else result.copy_(y)
