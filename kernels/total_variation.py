"""Norms of the differences of neighbouring pixels, and the gradient of their sum."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import BlockShape, block_shape
from synq_fast.kernels._layout import (
    PlaneLayout,
    finished,
    on_device_of,
    output_like,
    plane_layout,
    power_of_two,
)

SUMS = BlockShape(1024, 4)


@triton.jit
def squares_kernel(
    x_ptr, partial_ptr, rows, length, height, step, row_tiles, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (group, row tile, column tile) writes its four sums of squares."""
    program = tl.program_id(0).to(tl.int64)
    tile = program // column_tiles
    group = tile // row_tiles
    row = ((tile % row_tiles) * ROWS + tl.arange(0, ROWS))[:, None]
    column = ((program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    valid = (row < rows) & (column < length)
    right = valid & (column + step < length)
    down = valid & (row % height + 1 < height)
    both = right & down
    place = x_ptr + (group * rows + row) * length + column
    here = tl.load(place, mask=valid, other=0.0).to(tl.float32)
    to_right = tl.load(place + step, mask=right, other=0.0).to(tl.float32)
    below = tl.load(place + length, mask=down, other=0.0).to(tl.float32)
    across = tl.load(place + length + step, mask=both, other=0.0).to(tl.float32)
    target = partial_ptr + program * 4
    d = tl.where(right, to_right - here, 0.0)
    tl.store(target, tl.sum(tl.sum(d * d, 1), 0))
    d = tl.where(down, below - here, 0.0)
    tl.store(target + 1, tl.sum(tl.sum(d * d, 1), 0))
    d = tl.where(both, across - here, 0.0)
    tl.store(target + 2, tl.sum(tl.sum(d * d, 1), 0))
    d = tl.where(both, below - to_right, 0.0)
    tl.store(target + 3, tl.sum(tl.sum(d * d, 1), 0))


@triton.jit
def difference(place, here, mask):
    """Returns what the pixels differ by from others, zero where there are none."""
    return tl.where(mask, here - tl.load(place, mask=mask, other=0.0).to(tl.float32), 0.0)


@triton.jit
def variation_backward_kernel(
    x_ptr, factor_ptr, y_ptr, rows, length, height, step, row_tiles, column_tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program handles a tile of the rows of one group."""
    program = tl.program_id(0).to(tl.int64)
    tile = program // column_tiles
    group = tile // row_tiles
    row = ((tile % row_tiles) * ROWS + tl.arange(0, ROWS))[:, None]
    column = ((program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    valid = (row < rows) & (column < length)
    right = valid & (column + step < length)
    left = valid & (column >= step)
    down = valid & (row % height + 1 < height)
    up = valid & (row % height > 0)
    offset = (group * rows + row) * length + column
    place = x_ptr + offset
    here = tl.load(place, mask=valid, other=0.0).to(tl.float32)
    factor = factor_ptr + group * 4
    y = tl.load(factor) * (difference(place + step, here, right))
    y += tl.load(factor) * (difference(place - step, here, left))
    y += tl.load(factor + 1) * (difference(place + length, here, down))
    y += tl.load(factor + 1) * (difference(place - length, here, up))
    y += tl.load(factor + 2) * (difference(place + length + step, here, down & right))
    y += tl.load(factor + 2) * (difference(place - length - step, here, up & left))
    y += tl.load(factor + 3) * (difference(place + length - step, here, down & left))
    y += tl.load(factor + 3) * (difference(place - length + step, here, up & right))
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=valid)


def _tiles(rows: int, length: int, elements: int) -> tuple[int, int, int, int]:
    """Returns rows and columns of a tile, and how many tiles rows and columns make."""
    columns = min(power_of_two(length), elements)
    height = min(power_of_two(rows), elements // columns)
    return height, columns, triton.cdiv(rows, height), triton.cdiv(length, columns)


def _launch(
    kernel, images: PlaneLayout, groups: int, shape: BlockShape, *tensors: torch.Tensor
) -> None:
    rows, length = images.planes // groups * images.height, images.width * images.step
    height, columns, row_tiles, column_tiles = _tiles(rows, length, shape.elements)
    with on_device_of(tensors[0]):
        kernel[(groups * row_tiles * column_tiles,)](
            *tensors, rows, length, images.height, images.step, row_tiles, column_tiles,
            ROWS=height, COLUMNS=columns, num_warps=shape.warps,
        )  # fmt: skip


def total_variation(x: torch.Tensor, per_image: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values, `()` or `(B,)`, and the norms, `(values, 4)`."""
    groups = x.shape[0] if per_image else 1
    shape = (groups,) if per_image else ()
    if x.numel() == 0:
        value, norms = (x.new_zeros(size, dtype=torch.float32) for size in (shape, (groups, 4)))
        return value, norms
    x, images = plane_layout(x)
    rows, length = images.planes // groups * images.height, images.width * images.step
    tiles = _tiles(rows, length, SUMS.elements)
    partial = x.new_empty((groups, tiles[2] * tiles[3], 4), dtype=torch.float32)
    _launch(squares_kernel, images, groups, SUMS, x, partial)
    norms = partial.sum(1, dtype=torch.float64).sqrt()
    return norms.sum(1).float().reshape(shape), norms.float()


def total_variation_backward(
    grad: torch.Tensor, x: torch.Tensor, norms: torch.Tensor
) -> torch.Tensor:
    """Returns the gradient of `x`, laid out as `x`."""
    result = torch.empty_like(x)
    if x.numel() == 0:
        return result
    factors = torch.where(norms == 0, 0.0, grad.float().reshape(-1, 1) / norms).contiguous()
    x, images = plane_layout(x)
    y = output_like(x)
    shape = block_shape("variation_backward_kernel", x.dtype)
    _launch(variation_backward_kernel, images, norms.shape[0], shape, x, factors, y)
    y = finished(y, x)
    return y if y.stride() == result.stride() else result.copy_(y)
