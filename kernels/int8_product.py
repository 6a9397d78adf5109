"""Products of int8 codes on tensor cores, with all that follows a frozen layer in one launch.

A program has a tile of the result, whose sums are whole numbers of 32 bits, so no order of them
matters. Tiles of the same rows follow each other: what one reads is in cache for the next, and the
weights of a layer stay there.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layout import on_device_of
from synq_fast.kernels.int8_codes import code_of, steps_of

DEPTH = 64  # codes of a row and a turn
STAGES = 4
TILES = (
    *((128, 128), (128, 64), (128, 32), (128, 16)),
    *((64, 64), (32, 64), (32, 32), (16, 32), (16, 16)),
)  # fmt: skip
# Values of a tile, whose registers leave room for a second program; fewer where what is added is
# alive beside the sums, or codes are read one by one.
MOST, MOST_ADDED, MOST_ODD = 128 * 128, 128 * 64, 64 * 64
TARGET_PROGRAMS = 132  # at once


@triton.jit
def product_kernel(
    x_ptr, w_ptr, bias_ptr, multiplier_ptr, added_ptr, y_ptr, rows, columns, stride,
    scale, inverse, least, most, offset, added_scale, added_offset,
    K: tl.constexpr, CODES: tl.constexpr, ADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Program: (tile of rows, tile of columns); `stride` between rows of x."""
    tiles = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    first_row = (program // tiles).to(tl.int64) * ROWS
    left = tl.minimum(rows - first_row, ROWS).to(tl.int32)
    row = tl.arange(0, ROWS)  # within the tile: 32 bits reach all of its result
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    # Beyond the edge the last row is read again and nothing is stored.
    x_rows = x_ptr + (first_row + tl.minimum(row, left - 1))[:, None] * stride
    w_rows = w_ptr + tl.minimum(column, columns - 1)[None, :].to(tl.int64) * K
    sums = tl.zeros((ROWS, COLUMNS), tl.int32)
    for first in range(0, K, DEPTH):
        k = first + tl.arange(0, DEPTH)
        if K % DEPTH == 0:
            x = tl.load(x_rows + k[None, :])
            w = tl.load(w_rows + k[:, None])
        else:
            x = tl.load(x_rows + k[None, :], mask=(k < K)[None, :], other=0)
            w = tl.load(w_rows + k[:, None], mask=(k < K)[:, None], other=0)
        sums = tl.dot(x, w, sums, out_dtype=tl.int32)
    sums += tl.load(bias_ptr + column, mask=column < columns, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + column, mask=column < columns, other=0.0)
    y = sums.to(tl.float32) * multiplier[None, :]
    start = first_row * columns
    place = row[:, None] * columns + column[None, :]
    inside = (row < left)[:, None] & (column < columns)[None, :]
    if ADDED:
        added = tl.load(added_ptr + start + place, mask=inside, other=0).to(tl.float32)
        y += (added + added_offset) * added_scale
    if CODES:
        codes = code_of(y, scale, inverse, least, most, offset)
        tl.store(y_ptr + start + place, codes, mask=inside)
    else:
        tl.store(y_ptr + start + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def tile_of(rows: int, columns: int, depth: int, adds: bool = False) -> tuple[int, int]:
    """Returns rows and columns of a tile: what is read through the cache decides."""
    most = MOST_ODD if depth % 16 else MOST_ADDED if adds else MOST

    def cost(tile: tuple[int, int]) -> tuple[int, int]:
        programs = triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1])
        return triton.cdiv(programs, TARGET_PROGRAMS) * sum(tile), programs

    return min((tile for tile in TILES if tile[0] * tile[1] <= most), key=cost)


def int8_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    multiplier: torch.Tensor,
    grid: tuple[float, int, int, int] | None,
    added: torch.Tensor | None,
    added_grid: tuple[float, int, int, int] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns the (M, N) that `reference._int8_product` defines."""
    (rows, depth), columns = x.shape, len(weight)
    y = x.new_empty((rows, columns), dtype=dtype if grid is None else torch.int8)
    if y.numel() == 0:
        return y
    if depth > 1 and x.stride(1) != 1:
        x = x.contiguous()
    tile_rows, tile_columns = tile_of(rows, columns, depth, added is not None)
    programs = triton.cdiv(rows, tile_rows) * triton.cdiv(columns, tile_columns)
    added_scale, _, _, added_offset = added_grid or (1.0, 0, 0, 0)
    with on_device_of(x):
        product_kernel[(programs,)](
            x, weight.contiguous(), bias, multiplier,
            bias if added is None else added.contiguous(), y, rows, columns, x.stride(0),
            *steps_of(grid or (1.0, 0, 0, 0)), added_scale, float(added_offset), K=depth,
            CODES=grid is not None, ADDED=added is not None, ROWS=tile_rows, COLUMNS=tile_columns,
            DEPTH=DEPTH,
            num_warps=max(tile_rows * tile_columns // 2048, 4), num_stages=STAGES,
            enable_fp_fusion=False,
        )  # fmt: skip
    return y
