"""Entropy of the similarities between patch tokens, and its gradient.

Similarities are stored once, and their slopes take their place; nothing is as large as images x
points x similarities. Tiles on and above the diagonal are computed and mirrored. Sums go through
partials with fixed places, so every run gives the same bits. Products are in full float32.
"""

import math

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import maximum_of, minimum_of
from synq_fast.kernels._layout import on_device_of, power_of_two

LEAST_NORM = 1e-8
TILE = 64  # similarities: TILE x TILE per program
DEPTH = 32
CHANNELS = 1024  # of a token, read at a time
BLOCK = 256  # similarities x POINTS kernels are in a program's registers
POINTS = 16
SPLIT = 16  # blocks that a program sums up
RANGE_BLOCK = 1024
SLOPES = 1024


@triton.jit
def normalize_kernel(tokens_ptr, unit_ptr, inverse_ptr, channels, least, BLOCK: tl.constexpr):
    """Program: one token. `inverse` is negative where the norm is below `least`."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < channels:
        mask = start + column < channels
        x = tl.load(tokens_ptr + token * channels + start + column, mask=mask, other=0.0)
        x = x.to(tl.float32)
        squares += x * x
        start += BLOCK
    norm = tl.sqrt_rn(tl.sum(squares, 0))
    short = norm < least  # not for NaN, which stays
    divisor = tl.where(short, least, norm)
    inverse = 1.0 / divisor
    tl.store(inverse_ptr + token, tl.where(short, -inverse, inverse))
    start = 0
    while start < channels:
        mask = start + column < channels
        offsets = token * channels + start + column
        x = tl.load(tokens_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(
            unit_ptr + offsets, tl.div_rn(x, tl.full(x.shape, 0.0, tl.float32) + divisor), mask=mask
        )
        start += BLOCK


@triton.jit
def product_tile(
    a_ptr, a_row, a_depth, b_ptr, b_depth, b_column, rows, columns, depth, row, column,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Returns rows x columns of a b; both are masked at their ends."""
    k = tl.arange(0, DEPTH)
    result = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    start = 0
    while start < depth:
        inside = start + k < depth
        a = tl.load(
            a_ptr + row[:, None] * a_row + (start + k)[None, :] * a_depth,
            mask=(row < rows)[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + (start + k)[:, None] * b_depth + column[None, :] * b_column,
            mask=inside[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        result = tl.dot(a, b, result, input_precision="ieee")
        start += DEPTH
    return result


@triton.jit
def similarity_kernel(
    unit_ptr, similarity_ptr, low_ptr, high_ptr, count, channels, tiles,
    TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Program: (image, tile row, tile column); one range per program."""
    program = tl.program_id(0).to(tl.int64)
    image = program // (tiles * tiles)
    first = (program // tiles) % tiles
    second = program % tiles
    if first <= second:
        row = first * TILE + tl.arange(0, TILE)
        column = second * TILE + tl.arange(0, TILE)
        unit = unit_ptr + image * count * channels
        result = product_tile(
            unit, channels, 1, unit, 1, channels, count, count, channels, row, column, DEPTH
        )
        mask = (row < count)[:, None] & (column < count)[None, :]
        target = similarity_ptr + image * count * count
        tl.store(target + row[:, None] * count + column[None, :], result, mask=mask)
        if first < second:
            mirrored = (column < count)[:, None] & (row < count)[None, :]
            tl.store(
                target + column[:, None] * count + row[None, :], tl.trans(result), mask=mirrored
            )
        tl.store(low_ptr + program, minimum_of(tl.where(mask, result, float("inf")), None))
        tl.store(high_ptr + program, maximum_of(tl.where(mask, result, float("-inf")), None))
    else:
        tl.store(low_ptr + program, float("inf"))
        tl.store(high_ptr + program, float("-inf"))


@triton.jit
def range_kernel(low_ptr, high_ptr, range_ptr, programs, BLOCK: tl.constexpr):
    """Reduces all ranges to one; a single program."""
    i = tl.arange(0, BLOCK)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    start = 0
    while start < programs:
        mask = start + i < programs
        least = tl.load(low_ptr + start + i, mask=mask, other=float("inf"))
        most = tl.load(high_ptr + start + i, mask=mask, other=float("-inf"))
        low = tl.minimum(low, least, propagate_nan=tl.PropagateNan.ALL)
        high = tl.maximum(high, most, propagate_nan=tl.PropagateNan.ALL)
        start += BLOCK
    tl.store(range_ptr, minimum_of(low, None))
    tl.store(range_ptr + 1, maximum_of(high, None))


@triton.jit
def position(low, high, index, points):
    """Returns where a point of the estimate lies."""
    return low + (high - low) * (index.to(tl.float32) / (points - 1))


@triton.jit
def density_kernel(
    similarity_ptr, range_ptr, partial_ptr, elements, points, splits, exponent,
    BLOCK: tl.constexpr, POINTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Program: (image, split), group of points; partials are (image, split, points)."""
    program = tl.program_id(0).to(tl.int64)
    image = program // splits
    start = program % splits * (BLOCK * SPLIT)
    end = tl.minimum(start + BLOCK * SPLIT, elements)
    point = tl.program_id(1) * POINTS + tl.arange(0, POINTS)
    x = position(tl.load(range_ptr), tl.load(range_ptr + 1), point, points)
    total = tl.zeros((POINTS,), tl.float32)
    while start < end:
        i = start + tl.arange(0, BLOCK)
        s = tl.load(similarity_ptr + image * elements + i, mask=i < elements, other=0.0)
        d = s[:, None] - x[None, :]
        kernel = tl.exp2(exponent * d * d)
        total += tl.sum(tl.where((i < elements)[:, None], kernel, 0.0), 0)
        start += BLOCK
    tl.store(partial_ptr + program * points + point, total, mask=point < points)


@triton.jit
def entropy_kernel(
    partial_ptr, range_ptr, entropy_ptr, slope_ptr, points, splits, normalizer, eps, of_density,
    WITH_SLOPE: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Program: one image."""
    image = tl.program_id(0).to(tl.int64)
    point = tl.arange(0, POINTS)
    mask = point < points
    total = tl.zeros((POINTS,), tl.float64)
    split = 0
    while split < splits:
        offsets = (image * splits + split) * points + point
        total += tl.load(partial_ptr + offsets, mask=mask, other=0.0).to(tl.float64)
        split += 1
    density = (total * normalizer).to(tl.float32) + eps
    logarithm = tl.log(density)
    spacing = (tl.load(range_ptr + 1) - tl.load(range_ptr)) / (points - 1)
    width = tl.where((point == 0) | (point == points - 1), 0.5 * spacing, spacing)
    tl.store(entropy_ptr + image, tl.sum(tl.where(mask, -density * logarithm * width, 0.0), 0))
    if WITH_SLOPE:
        slope = of_density * (logarithm + 1.0) * width
        tl.store(slope_ptr + image * points + point, slope, mask=mask)


@triton.jit
def slope_kernel(
    similarity_ptr, range_ptr, slope_ptr, elements, points, blocks, exponent, BLOCK: tl.constexpr
):
    """Replaces similarities by the entropy's gradient in them. Program: (image, block)."""
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    i = program % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = i < elements
    low = tl.load(range_ptr)
    high = tl.load(range_ptr + 1)
    s = tl.load(similarity_ptr + image * elements + i, mask=mask, other=0.0)
    result = tl.zeros((BLOCK,), tl.float32)
    point = tl.zeros((), tl.int32)
    while point < points:
        d = s - position(low, high, point, points)
        result += tl.load(slope_ptr + image * points + point) * d * tl.exp2(exponent * d * d)
        point += 1
    tl.store(similarity_ptr + image * elements + i, result, mask=mask)


@triton.jit
def direction_kernel(
    slope_ptr, unit_ptr, result_ptr, count, channels, row_tiles, column_tiles,
    TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Gradient in the unit tokens: slopes times unit tokens. Program: one tile of an image's."""
    program = tl.program_id(0).to(tl.int64)
    image = program // (row_tiles * column_tiles)
    row = (program // column_tiles) % row_tiles * TILE + tl.arange(0, TILE)
    column = program % column_tiles * TILE + tl.arange(0, TILE)
    result = product_tile(
        slope_ptr + image * count * count, count, 1,
        unit_ptr + image * count * channels, channels, 1,
        count, channels, count, row, column, DEPTH,
    )  # fmt: skip
    offsets = image * count * channels + row[:, None] * channels + column[None, :]
    tl.store(
        result_ptr + offsets, result, mask=(row < count)[:, None] & (column < channels)[None, :]
    )


@triton.jit
def project_kernel(unit_ptr, inverse_ptr, gradient_ptr, channels, BLOCK: tl.constexpr):
    """Turns the gradient in a unit token into that in the token, in place. Program: one token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    products = tl.zeros((BLOCK,), tl.float32)
    start = 0
    while start < channels:
        mask = start + column < channels
        offsets = token * channels + start + column
        products += tl.load(unit_ptr + offsets, mask=mask, other=0.0) * tl.load(
            gradient_ptr + offsets, mask=mask, other=0.0
        )
        start += BLOCK
    inverse = tl.load(inverse_ptr + token)
    # A token shorter than the least norm is divided by a constant: its length has a gradient too.
    along = tl.where(inverse < 0.0, 0.0, tl.sum(products, 0))
    start = 0
    while start < channels:
        mask = start + column < channels
        offsets = token * channels + start + column
        unit = tl.load(unit_ptr + offsets, mask=mask, other=0.0)
        gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0)
        tl.store(gradient_ptr + offsets, tl.abs(inverse) * (gradient - along * unit), mask=mask)
        start += BLOCK


def _evaluate(
    tokens: torch.Tensor, points: int, bandwidth: float, eps: float, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch, count, channels = tokens.shape
    floats = {"dtype": torch.float32, "device": tokens.device}
    entropy = torch.empty(batch, **floats)
    gradient = torch.empty(tokens.shape, **floats) if with_gradient else None
    if batch == 0:
        return entropy, gradient
    tokens = tokens.contiguous()
    elements = count * count
    block = min(power_of_two(channels), CHANNELS)
    tiles = triton.cdiv(count, TILE)
    programs = batch * tiles * tiles
    splits = triton.cdiv(elements, BLOCK * SPLIT)
    blocks = triton.cdiv(elements, SLOPES)
    exponent = -0.5 * math.log2(math.e) / bandwidth / bandwidth
    normalizer = 1 / (bandwidth * math.sqrt(2 * math.pi) * elements)

    unit = torch.empty(tokens.shape, **floats)
    inverse = torch.empty(batch, count, **floats)
    similarity = torch.empty(batch, count, count, **floats)
    low, high = torch.empty(2, programs, **floats)
    limits = torch.empty(2, **floats)
    partial = torch.empty(batch, splits, points, **floats)
    slope = torch.empty(batch, points, **floats) if with_gradient else entropy
    with on_device_of(tokens):
        normalize_kernel[(batch * count,)](
            tokens, unit, inverse, channels, LEAST_NORM,
            BLOCK=block, num_warps=min(max(block // 32, 1), 4),
        )  # fmt: skip
        similarity_kernel[(programs,)](
            unit, similarity, low, high, count, channels, tiles, TILE=TILE, DEPTH=DEPTH, num_warps=8
        )
        range_kernel[(1,)](low, high, limits, programs, BLOCK=RANGE_BLOCK)
        density_kernel[(batch * splits, triton.cdiv(points, POINTS))](
            similarity, limits, partial, elements, points, splits, exponent,
            BLOCK=BLOCK, POINTS=POINTS, SPLIT=SPLIT,
        )  # fmt: skip
        entropy_kernel[(batch,)](
            partial, limits, entropy, slope, points, splits, normalizer, eps,
            2 * normalizer / bandwidth / bandwidth,
            WITH_SLOPE=with_gradient, POINTS=power_of_two(points), num_warps=1,
        )  # fmt: skip
        if gradient is None:
            return entropy, None
        slope_kernel[(batch * blocks,)](
            similarity, limits, slope, elements, points, blocks, exponent, BLOCK=SLOPES
        )
        columns = triton.cdiv(channels, TILE)
        direction_kernel[(batch * tiles * columns,)](
            similarity, unit, gradient, count, channels, tiles, columns,
            TILE=TILE, DEPTH=DEPTH, num_warps=8,
        )  # fmt: skip
        project_kernel[(batch * count,)](
            unit, inverse, gradient, channels, BLOCK=block, num_warps=min(max(block // 32, 1), 4)
        )
    return entropy, gradient


def patch_similarity_entropy(
    tokens: torch.Tensor, points: int, bandwidth: float, eps: float
) -> torch.Tensor:
    """Returns each image's entropy; `tokens` are (images, tokens, channels)."""
    return _evaluate(tokens, points, bandwidth, eps, with_gradient=False)[0]


def patch_similarity_entropy_with_gradient(
    tokens: torch.Tensor, points: int, bandwidth: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns each image's entropy and the float32 gradient of their sum."""
    return _evaluate(tokens, points, bandwidth, eps, with_gradient=True)
