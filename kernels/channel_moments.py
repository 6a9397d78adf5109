"""Mean and mean square of every channel of every image, and their gradient."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layout import (
    finished,
    memory_order,
    on_device_of,
    output_like,
    power_of_two,
)

TILE = 2048
MAXIMUM_COLUMNS = 64  # channels side by side where they are innermost
TARGET_PROGRAMS = 1024
MAXIMUM_SPLITS = 64


class Moments(NamedTuple):
    """Memory as (samples, channels, positions), or (samples, positions, channels) if `innermost`.

    As a matrix it has a row per channel of a sample, or a row per position.
    """

    samples: int
    channels: int
    positions: int
    innermost: bool

    @property
    def rows(self) -> int:
        """Rows of one sample."""
        return self.positions if self.innermost else self.channels

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return self.channels if self.innermost else self.positions


@triton.jit
def moments_kernel(
    x_ptr, mean_ptr, square_ptr, rows, columns, total, splits, count,
    INNERMOST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (group, split) sums every `splits`-th tile; divides by `count` if it is positive.

    A group is ROWS rows, all of which are `total`; with channels innermost it is COLUMNS columns of
    one sample. Results are (channels of all samples, splits).
    """
    program = tl.program_id(0).to(tl.int64)
    group = program // splits
    split = program % splits
    first = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    second = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    groups = tl.cdiv(columns, COLUMNS)
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
        first += x
        second += x * x
        tile += splits
    axis: tl.constexpr = 0 if INNERMOST else 1
    if INNERMOST:
        column = (group % groups) * COLUMNS + tl.arange(0, COLUMNS)
        place = group // groups * columns + column
        valid = column < columns
    else:
        place = group * ROWS + tl.arange(0, ROWS)
        valid = place < total
    first = tl.sum(first, axis)
    second = tl.sum(second, axis)
    if count > 0.0:
        first = tl.div_rn(first, tl.full(first.shape, 0.0, tl.float32) + count)
        second = tl.div_rn(second, tl.full(second.shape, 0.0, tl.float32) + count)
    tl.store(mean_ptr + place * splits + split, first, mask=valid)
    tl.store(square_ptr + place * splits + split, second, mask=valid)


@triton.jit
def finish_moments_kernel(
    first_ptr, second_ptr, mean_ptr, square_ptr, splits, count, SPLITS: tl.constexpr
):
    """Adds the partial sums of one channel of one sample."""
    group = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    mask = split < splits
    first = tl.load(first_ptr + group * splits + split, mask=mask, other=0.0).to(tl.float64)
    second = tl.load(second_ptr + group * splits + split, mask=mask, other=0.0).to(tl.float64)
    tl.store(mean_ptr + group, (tl.sum(first, 0) / count).to(tl.float32))
    tl.store(square_ptr + group, (tl.sum(second, 0) / count).to(tl.float32))


@triton.jit
def moments_backward_kernel(
    x_ptr, mean_ptr, square_ptr, y_ptr, rows, columns, sample_rows, count,
    HAS_MEAN: tl.constexpr, HAS_SQUARE: tl.constexpr,
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
    if HAS_SQUARE:
        x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
        y = x * (tl.load(square_ptr + group, mask=valid) * 2.0 / count)
    if HAS_MEAN:
        y = y + tl.load(mean_ptr + group, mask=valid) / count
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def _arranged(x: torch.Tensor) -> tuple[torch.Tensor, Moments]:
    """Returns `x`, copied only if its memory has neither form of `Moments`."""
    samples, channels, positions = *x.shape[:2], x.shape[2:].numel()
    order = memory_order(x)
    if order is not None:
        order = [dim for dim in order if x.shape[dim] != 1]
        spatial = [dim for dim in order if dim > 1]
        first = [0] if samples > 1 else []
        middle = [1] if channels > 1 else []
        if order == first + middle + spatial:
            return x, Moments(samples, channels, positions, False)
        if order == first + spatial + middle:
            return x, Moments(samples, channels, positions, True)
    return x.contiguous(), Moments(samples, channels, positions, False)


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean and the mean square, both `(B, C)` in float32."""
    mean, square = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return mean.fill_(float("nan")), square.fill_(float("nan"))
    x, shape = _arranged(x)
    if shape.innermost:
        columns = min(power_of_two(shape.columns), MAXIMUM_COLUMNS)
        rows = min(power_of_two(shape.rows), TILE // columns)
        groups = shape.samples * triton.cdiv(shape.columns, columns)
        tiles = triton.cdiv(shape.rows, rows)
    else:
        columns = min(power_of_two(shape.columns), TILE // 2)
        rows = TILE // 2 // columns
        groups = triton.cdiv(shape.samples * shape.rows, rows)
        tiles = triton.cdiv(shape.columns, columns)
    wanted = triton.cdiv(TARGET_PROGRAMS, groups)
    splits = max(1, min(triton.cdiv(tiles, 4), wanted, MAXIMUM_SPLITS))
    partials = (mean, square) if splits == 1 else mean.new_empty(2, mean.numel() * splits).unbind()
    count = float(shape.positions)
    with on_device_of(x):
        moments_kernel[(groups * splits,)](
            x, *partials, shape.rows, shape.columns, shape.samples * shape.rows, splits,
            count if splits == 1 else 0.0,
            INNERMOST=shape.innermost, ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
        if splits > 1:
            finish_moments_kernel[(mean.numel(),)](
                *partials, mean, square, splits, count, SPLITS=power_of_two(splits), num_warps=1
            )
    return mean, square


def channel_moments_backward(
    of_mean: torch.Tensor | None, of_square: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    """Returns the gradient of `x` in its dtype and layout."""
    result = torch.empty_like(x)
    if x.numel() == 0:
        return result
    x, shape = _arranged(x)
    y = output_like(x)
    rows, columns = shape.samples * shape.rows, shape.columns
    tile_columns = min(power_of_two(columns), 256 if shape.innermost else TILE // 2)
    tile_rows = TILE // 2 // tile_columns
    programs = (triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns),)
    gradients = [x if value is None else value.contiguous() for value in (of_mean, of_square)]
    with on_device_of(x):
        moments_backward_kernel[programs](
            x, *gradients, y, rows, columns, shape.rows, float(shape.positions),
            HAS_MEAN=of_mean is not None, HAS_SQUARE=of_square is not None,
            INNERMOST=shape.innermost, ROWS=tile_rows, COLUMNS=tile_columns, num_warps=4,
        )  # fmt: skip
    y = finished(y, x)
    return y if y.stride() == result.stride() else result.copy_(y)
