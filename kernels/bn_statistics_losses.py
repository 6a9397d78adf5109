"""The losses on the batch-normalisation statistics of a network's layers, and their gradients.

Layers that are read alike share a launch, whose programs find their layer in a table; statistics of
all layers are made by one, and so is the sum. A layer is divided as if it were alone.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layer_table import (
    count_at,
    float_word,
    is_aligned,
    layer_of,
    pointer_of,
    searched,
    table_of,
)
from synq_fast.kernels._layout import (
    dense,
    finished,
    on_device_of,
    output_like,
)
from synq_fast.kernels._tiles import WARPS
from synq_fast.kernels.bn_statistics_loss import (
    PARTS,
    divide,
    divide_gradient,
    finish_channel,
    parts_of,
    reduce_part,
    total_of,
    write_gradient,
)

COUNTS = ["start", "layers"]


@triton.jit(do_not_specialize=COUNTS)
def layers_partials_kernel(
    table_ptr, like_ptr, partial_ptr, start, layers,
    BY_COLUMN: tl.constexpr, UNIT: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, NARROW: tl.constexpr, LAYERS: tl.constexpr,
):  # fmt: skip
    """The parts of layers whose programs are numbered from `start` on.

    The table is (11, layers): first program, first column of the statistics, first part, channels,
    splits, address, outer, units, addresses of the running mean and variance, weight.
    """
    program = tl.program_id(0).to(tl.int64) + start
    row = table_ptr + layer_of(program, start, table_ptr, layers, LAYERS)
    reduce_part(
        pointer_of(tl.load(row + 5 * layers), like_ptr, ALIGNED),
        partial_ptr + tl.load(row + 2 * layers), program - tl.load(row),
        count_at(row + 6 * layers, NARROW), count_at(row + 3 * layers, NARROW),
        count_at(row + 7 * layers, NARROW), count_at(row + 4 * layers, NARROW),
        BY_COLUMN, UNIT, DEPTH, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def layers_finish_kernel(
    table_ptr, partial_ptr, statistics_ptr, terms_ptr, layers, row_stride,
    PARTS: tl.constexpr, LAYERS: tl.constexpr,
):  # fmt: skip
    """A channel of any layer."""
    program = tl.program_id(0).to(tl.int64)
    row = table_ptr + layer_of(program, 0, table_ptr + layers, layers, LAYERS)
    column = tl.load(row + layers)
    finish_channel(
        partial_ptr + tl.load(row + 2 * layers),
        pointer_of(tl.load(row + 8 * layers), partial_ptr, False),
        pointer_of(tl.load(row + 9 * layers), partial_ptr, False),
        statistics_ptr + column, terms_ptr + column,
        tl.load(row + 10 * layers).to(tl.int32).to(tl.float32, bitcast=True), program - column,
        tl.load(row + 3 * layers), tl.load(row + 4 * layers), row_stride, row_stride, PARTS,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def layers_gradient_kernel(
    table_ptr, like_ptr, result_like_ptr, statistics_ptr, scale_ptr, start, layers, row_stride,
    BY_COLUMN: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr, NARROW: tl.constexpr, LAYERS: tl.constexpr,
):  # fmt: skip
    """The gradients of layers whose programs are numbered from `start` on.

    The table is (10, layers): first program, first column of the statistics, channels, splits,
    addresses of input and result, rows, units, elements of a channel, weight.
    """
    program = tl.program_id(0).to(tl.int64) + start
    row = table_ptr + layer_of(program, start, table_ptr, layers, LAYERS)
    write_gradient(
        pointer_of(tl.load(row + 4 * layers), like_ptr, ALIGNED),
        pointer_of(tl.load(row + 5 * layers), result_like_ptr, ALIGNED),
        statistics_ptr + tl.load(row + layers), scale_ptr, scale_ptr,
        tl.load(row + 9 * layers).to(tl.int32).to(tl.float32, bitcast=True),
        program - tl.load(row), count_at(row + 6 * layers, NARROW),
        count_at(row + 2 * layers, NARROW), count_at(row + 8 * layers, NARROW),
        count_at(row + 7 * layers, NARROW), count_at(row + 3 * layers, NARROW),
        row_stride, True, True, BY_COLUMN, UNIT, ROWS, COLUMNS,
    )  # fmt: skip


class Likeness(NamedTuple):
    """What layers of one launch have in common; narrow ones are counted in 32 bits."""

    dtype: torch.dtype
    aligned: bool
    by_column: bool
    narrow: bool
    shapes: tuple[int, ...]


class Share(NamedTuple):
    """Layers of one launch, whose programs are numbered from `start` on."""

    like: Likeness
    first_layer: int
    start: int
    programs: int


def share(likenesses: Sequence[Likeness], programs: Sequence[int]) -> tuple[list[Share], list[int]]:
    """Returns which layers share launches, and each layer's first program."""
    shares, first, start = [], [0] * len(programs), 0
    for like in dict.fromkeys(likenesses):
        layers = [i for i, other in enumerate(likenesses) if other == like]
        end = start
        for i in layers:
            first[i] = end
            end += programs[i]
        shares.append(Share(like, layers[0], start, end - start))
        start = end
    return shares, first


def before(counts: Sequence[int]) -> list[int]:
    """Returns how many there are before each, and in all."""
    return [0, *accumulate(counts)]


def bn_statistics_losses(
    inputs: Sequence[torch.Tensor],
    running_means: Sequence[torch.Tensor],
    running_vars: Sequence[torch.Tensor],
    weights: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `(loss, statistics)`; statistics are (3, channels), layer after layer."""
    layers = [dense(x, 1) for x in inputs]
    divisions = [divide(layout, x.element_size()) for x, layout in layers]
    stored = [
        [value.float().contiguous() for value in values] for values in (running_means, running_vars)
    ]
    columns = before([layout.channels for _, layout in layers])
    parts = before([
        parts_of(layout.channels, division.splits)
        for (_, layout), division in zip(layers, divisions, strict=True)
    ])  # fmt: skip
    likenesses = [
        Likeness(x.dtype, is_aligned(x), layout.by_column, x.numel() < 2**31, division[:4])
        for (x, layout), division in zip(layers, divisions, strict=True)
    ]
    shares, first = share(likenesses, [division.groups * division.splits for division in divisions])
    rows = []
    for i, ((x, layout), division) in enumerate(zip(layers, divisions, strict=True)):
        outer, channels, inner = layout
        units = (channels if layout.by_column else inner) // division.unit
        rows.append((
            first[i], columns[i], parts[i], channels, division.splits, x.data_ptr(), outer, units,
            *(values[i].data_ptr() for values in stored), float_word(weights[i]),
        ))  # fmt: skip
    x = layers[0][0]
    table, places = table_of(rows, x), searched(len(layers))
    statistics = torch.empty(3, columns[-1], dtype=torch.float64, device=x.device)
    terms = torch.empty(2, columns[-1], dtype=torch.float64, device=x.device)
    partial = torch.empty(parts[-1], dtype=torch.float32, device=x.device)
    with on_device_of(x):
        for like, layer, start, programs in shares:
            unit, depth, tile_rows, tile_columns = like.shapes
            layers_partials_kernel[(programs,)](
                table, layers[layer][0], partial, start, len(layers), BY_COLUMN=like.by_column,
                UNIT=unit, DEPTH=depth, ROWS=tile_rows, COLUMNS=tile_columns,
                ALIGNED=like.aligned, NARROW=like.narrow, LAYERS=places, num_warps=WARPS,
            )  # fmt: skip
        layers_finish_kernel[(columns[-1],)](
            table, partial, statistics, terms, len(layers), columns[-1], PARTS=PARTS, LAYERS=places,
            num_warps=1,
        )  # fmt: skip
    return total_of(terms, apart=False)[0], statistics


def bn_statistics_losses_backward(
    loss: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    statistics: torch.Tensor,
    weights: Sequence[float],
) -> list[torch.Tensor]:
    """Returns the gradient of each input, given that of the loss."""
    layers = [dense(x, 1) for x in inputs]
    results = [output_like(x) for x, _ in layers]
    divisions = [divide_gradient(layout, x.dtype) for x, layout in layers]
    columns = before([layout.channels for _, layout in layers])
    likenesses, rows = [], []
    for (x, layout), y, division in zip(layers, results, divisions, strict=True):
        aligned, narrow = is_aligned(x) and is_aligned(y), x.numel() < 2**31
        shapes = division.unit, division.tile_rows, division.tile_columns
        likenesses.append(Likeness(x.dtype, aligned, layout.by_column, narrow, shapes))
    shares, first = share(likenesses, [division.groups * division.splits for division in divisions])
    for i, ((x, layout), y, division) in enumerate(zip(layers, results, divisions, strict=True)):
        rows.append((
            first[i], columns[i], layout.channels, division.splits, x.data_ptr(), y.data_ptr(),
            division.rows, division.units, layout.outer * layout.inner, float_word(weights[i]),
        ))  # fmt: skip
    table, places, scale = table_of(rows, loss), searched(len(layers)), loss.float()
    with on_device_of(loss):
        for like, layer, start, programs in shares:
            unit, tile_rows, tile_columns = like.shapes
            layers_gradient_kernel[(programs,)](
                table, layers[layer][0], results[layer], statistics, scale, start,
                len(layers), statistics.stride(0), BY_COLUMN=like.by_column, UNIT=unit,
                ROWS=tile_rows, COLUMNS=tile_columns, ALIGNED=like.aligned, NARROW=like.narrow,
                LAYERS=places, num_warps=divisions[layer].warps,
            )  # fmt: skip
    return [finished(y, x) for y, (x, _) in zip(results, layers, strict=True)]
