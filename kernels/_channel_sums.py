"""The gradient of `x` and two sums per channel, in one read of `x` and the incoming gradient.

Each program sums a part of a channel, or of neighbouring channels, in float32; a second kernel adds
the parts in float64. Parts have fixed places, so every run gives the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import clipped_gradient, make_affine, quantize, relu, relu_gradient
from synq_fast.kernels._layout import Layout, on_device_of, power_of_two
from synq_fast.kernels._log_grid import least_ratio, log_terms
from synq_fast.kernels._philox import Chance, kept_each, kept_quads
from synq_fast.kernels.fake_quantize import NO_BOUND, load_grid

TILE = 1024
TARGET_PROGRAMS = 1024
MAXIMUM_SPLITS = 512


@triton.jit
def learned_terms(gradient, x, scale, zero_point, half):
    """Returns the gradient of `x`, and terms that lack the channel's powers of 1 / scale."""
    position = scale * x - zero_point
    beyond = quantize(x, scale, zero_point, -half - 1.0, half)
    code = tl.clamp(beyond, -half, half - 1.0, propagate_nan=tl.PropagateNan.ALL)
    outside = (beyond < -half) | (beyond > half - 1.0)
    distance = tl.where(outside, -(code + zero_point), position - code)
    return (
        tl.where(outside, 0.0, gradient),
        gradient * distance,
        tl.where(outside, gradient, 0.0),
    )


@triton.jit
def affine_terms(
    gradient, x, weight, bias, residual, scale, zero_point, half, upper,
    RESIDUAL: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Returns the gradients of `x`, of weight and of bias; the last is that of a residual too."""
    value = x * weight + bias
    if RESIDUAL:
        value = value + residual
    if CLIP:
        gradient = clipped_gradient(gradient, relu(value, upper), scale, zero_point, half)
    gradient = relu_gradient(gradient, value, upper)
    return gradient * weight, gradient * x, gradient


@triton.jit
def sums_kernel(
    x_ptr, gradient_ptr, y_ptr, first_ptr, second_ptr, factor_ptr, offset_ptr, min_ptr, max_ptr,
    residual_ptr, of_residual_ptr, seed_ptr, outer, channels, inner, splits, levels, half, upper,
    threshold, drawn_from, least,
    LOG: tl.constexpr, AFFINE: tl.constexpr, CLIP: tl.constexpr, RESIDUAL: tl.constexpr,
    OF_RESIDUAL: tl.constexpr, DROPPED: tl.constexpr, QUADS: tl.constexpr,
    BY_COLUMN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (channels, split) handles every `splits`-th tile; partials are (channels, splits).

    The channels' factor and offset are weight and bias if AFFINE, else scale and zero point; if LOG
    there are scales alone, and terms of the first sum alone. If DROPPED, elements are left out by
    chance; QUADS: rows of a tile begin with a counter's first. The first element draws number
    `drawn_from`.
    """
    program = tl.program_id(0).to(tl.int64)
    group = program // splits
    split = program % splits
    columns = channels if BY_COLUMN else inner
    column_tiles = 1 if BY_COLUMN else tl.cdiv(inner, COLUMNS)
    tiles = tl.cdiv(outer, ROWS) * column_tiles
    channel = group
    if BY_COLUMN:
        channel = tl.minimum(group * COLUMNS + tl.arange(0, COLUMNS), channels - 1)
    if AFFINE:
        scale, zero_point = make_affine(tl.load(min_ptr), tl.load(max_ptr), levels, half)
        factor = tl.load(factor_ptr + channel)
        offset = tl.load(offset_ptr + channel)
    elif LOG:
        factor = tl.load(factor_ptr + channel)
        offset = factor
    else:
        factor, offset = load_grid(factor_ptr, offset_ptr, channel, levels, half, True)
    if BY_COLUMN:
        factor = factor[None, :]
        offset = offset[None, :]
    first = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    second = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
        column = (group if BY_COLUMN else tile % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
        if BY_COLUMN:
            offsets = row[:, None] * channels + column[None, :]
        else:
            offsets = (row[:, None] * channels + group) * inner + column[None, :]
        mask = (row < outer)[:, None] & (column < columns)[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if AFFINE:
            residual = x
            if RESIDUAL:
                residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            y, one, other = affine_terms(
                gradient, x, factor, offset, residual, scale, zero_point, half, upper,
                RESIDUAL, CLIP,
            )  # fmt: skip
            if OF_RESIDUAL:
                before_relu = other.to(of_residual_ptr.dtype.element_ty)
                tl.store(of_residual_ptr + offsets, before_relu, mask=mask)
        elif LOG:
            y, one = log_terms(gradient, x, factor, least)
        else:
            y, one, other = learned_terms(gradient, x, factor, offset, half)
            if DROPPED:
                seed = tl.load(seed_ptr)
                if QUADS:
                    first_column = (group if BY_COLUMN else tile % column_tiles) * COLUMNS
                    first_row = row * channels if BY_COLUMN else (row * channels + group) * inner
                    quad = (first_row[:, None] + first_column + drawn_from) // 4
                    quad += tl.arange(0, COLUMNS // 4)[None, :]
                    kept = kept_quads(quad, seed, threshold)
                else:
                    kept = kept_each(offsets + drawn_from, seed, threshold)
                y = tl.where(kept, y, gradient)
                one = tl.where(kept, one, 0.0)
                other = tl.where(kept, other, 0.0)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        # An infinite factor makes NaN of what the mask left out.
        first += tl.where(mask, one, 0.0)
        if not LOG:
            second += tl.where(mask, other, 0.0)
        tile += splits
    if BY_COLUMN:
        place = group * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(first_ptr + place * splits + split, tl.sum(first, 0), mask=place < channels)
        tl.store(second_ptr + place * splits + split, tl.sum(second, 0), mask=place < channels)
    else:
        tl.store(first_ptr + program, tl.sum(tl.sum(first, 1), 0))
        tl.store(second_ptr + program, tl.sum(tl.sum(second, 1), 0))


@triton.jit
def finish_sums_kernel(
    first_ptr, second_ptr, scale_ptr, one_ptr, other_ptr, splits, gradient_scale,
    LEARNED: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Adds one channel's partials."""
    channel = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    mask = split < splits
    first = tl.load(first_ptr + channel * splits + split, mask=mask, other=0.0).to(tl.float64)
    second = tl.load(second_ptr + channel * splits + split, mask=mask, other=0.0).to(tl.float64)
    one = tl.sum(first, 0)
    other = tl.sum(second, 0)
    if LEARNED:
        scale = tl.load(scale_ptr + channel).to(tl.float64)
        one = one / (scale * scale)
        other = other / scale
    tl.store(one_ptr + channel, (one * gradient_scale).to(tl.float32))
    tl.store(other_ptr + channel, (other * gradient_scale).to(tl.float32))


class Division(NamedTuple):
    """Tiles of `rows` by `columns`, for programs of `groups` channels or of columns by `splits`."""

    rows: int
    columns: int
    groups: int
    splits: int


def divide(layout: Layout) -> Division:
    """Returns how the memory of a reduction over channels is divided among programs."""
    outer, channels, inner = layout
    if layout.by_column:
        columns = min(power_of_two(channels), 64)
        groups = triton.cdiv(channels, columns)
        rows = min(power_of_two(outer), TILE // columns)
        tiles = triton.cdiv(outer, rows)
    else:
        columns = min(power_of_two(inner), TILE)
        groups = channels
        rows = min(power_of_two(outer), TILE // columns)
        tiles = triton.cdiv(outer, rows) * triton.cdiv(inner, columns)
    wanted = triton.cdiv(TARGET_PROGRAMS, groups)
    splits = max(1, min(triton.cdiv(tiles, 4), wanted, MAXIMUM_SPLITS))
    return Division(rows, columns, groups, splits)


def launch_sums(
    x: torch.Tensor,
    gradient: torch.Tensor,
    y: torch.Tensor,
    factors: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    layout: Layout,
    results: tuple[torch.Tensor, torch.Tensor],
    *,
    grid: tuple[torch.Tensor, torch.Tensor] | None = None,
    upper: float | None = None,
    clip: bool = False,
    gradient_scale: float = 1.0,
    residual: torch.Tensor | None = None,
    of_residual: torch.Tensor | None = None,
    chance: Chance | None = None,
    logarithmic: bool = False,
) -> None:
    """Enqueues both kernels for an affine map before `grid`, or for a learned grid without one.

    A logarithmic grid has scales alone; its second result means nothing.
    A residual after the map is laid out as `x`; its gradient is written to `of_residual` if given.
    A learned grid leaves elements out by `chance`.
    """
    outer, channels, inner = layout
    rows, columns, groups, splits = divide(layout)
    length = channels if layout.by_column else inner
    quads = columns >= 4 and (length % 4 == 0 or outer * channels == 1)
    first, second = results[0].new_empty(2, channels * splits)
    factor, offset = (value.contiguous() for value in factors)
    # A logarithmic grid divides twice: eight elements a thread would spill where they are wide.
    warps = 8 if logarithmic and x.dtype == torch.float32 else 4
    low, high = (factor, offset) if grid is None else (bound.contiguous() for bound in grid)
    with on_device_of(x):
        sums_kernel[(groups * splits,)](
            x, gradient, y, first, second, factor, offset, low, high,
            x if residual is None else residual, y if of_residual is None else of_residual,
            x if chance is None else chance.seed,
            outer, channels, inner, splits, float(2**bits - 1), float(2 ** (bits - 1)),
            NO_BOUND if upper is None else upper, 0 if chance is None else chance.threshold,
            0 if chance is None else chance.offset, least_ratio(bits) if logarithmic else 0,
            LOG=logarithmic, AFFINE=grid is not None, CLIP=clip,
            RESIDUAL=residual is not None, OF_RESIDUAL=of_residual is not None,
            DROPPED=chance is not None, QUADS=chance is not None and quads and chance.by_quads,
            BY_COLUMN=layout.by_column, ROWS=rows, COLUMNS=columns,
            num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
        finish_sums_kernel[(channels,)](
            first, second, factor, *results, splits, gradient_scale,
            LEARNED=grid is None and not logarithmic, SPLITS=power_of_two(splits), num_warps=1,
            enable_fp_fusion=False,
        )  # fmt: skip
