"""The gradient of coarse class activation maps, from every pixel of the resized map, in Triton.

One kernel adds up the pixels between two coarse rows, the next one gathers these sums. Sums have
fixed places, so every run gives the same bits.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape, layout_name
from synq_fast.kernels._cam import (
    COLUMNS,
    HIRES_CAM,
    LAYER_CAM,
    at_least,
    find_stretch,
    first_pixel,
    least_weight,
    make_tap,
    resized_row,
)
from synq_fast.kernels._layout import finished, on_device_of, output_like, power_of_two

COARSE_COLUMNS = 16
SUMS = 8  # of d, d n, d^2, pixels at the minimum, pixels at the maximum; a power of two
ARRAYS = 6  # gradient, minimum, maximum: of the upper and of the lower coarse row
BLOCK = 256
SPREAD_COLUMNS = 256


@triton.jit
def pull(values, column, weight, target):
    """Returns what pixels with these taps give to the coarse columns `target`."""
    share = tl.where(column[None, :] == target[:, None], 1.0 - weight[None, :], 0.0)
    share += tl.where(column[None, :] + 1 == target[:, None], weight[None, :], 0.0)
    # A share of 0 must not turn a NaN elsewhere into one here.
    return tl.sum(tl.where(share != 0.0, share * values[None, :], 0.0), 1)


@triton.jit
def interval_kernel(
    coarse_ptr, stretch_ptr, other_ptr, sums_ptr, arrays_ptr, height, width, map_height, map_width,
    LOSS: tl.constexpr, TARGETS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (image, coarse row, tile of coarse columns) adds up the pixels below that row."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(width, TARGETS)
    image = program // (tiles * height)
    row = program // tiles % height
    base = (program % tiles) * TARGETS
    target = base + tl.arange(0, TARGETS)
    coarse_ptr += image * height * width
    other_ptr += image * map_height * map_width
    low = tl.load(stretch_ptr + image * 4)
    peak = tl.load(stretch_ptr + image * 4 + 1)
    scale = tl.load(stretch_ptr + image * 4 + 2)
    lift = tl.load(stretch_ptr + image * 4 + 3)
    flat = scale == 0.0
    # At a minimum of 0 the ReLU has cut off everything that the pixel comes from.
    tied_low = tl.where(low == 0.0, float("nan"), low)

    first = first_pixel(row, height, map_height)
    end = first_pixel(row + 1, height, map_height)
    below = tl.minimum(row + 1, height - 1)
    all_d = tl.zeros((COLUMNS,), tl.float32)
    all_dn = tl.zeros((COLUMNS,), tl.float32)
    all_squared = tl.zeros((COLUMNS,), tl.float32)
    low_count = tl.zeros((COLUMNS,), tl.float32)
    peak_count = tl.zeros((COLUMNS,), tl.float32)
    near = tl.zeros((TARGETS,), tl.float32)
    far = tl.zeros((TARGETS,), tl.float32)
    low_near = tl.zeros((TARGETS,), tl.float32)
    low_far = tl.zeros((TARGETS,), tl.float32)
    peak_near = tl.zeros((TARGETS,), tl.float32)
    peak_far = tl.zeros((TARGETS,), tl.float32)
    start = first_pixel(base - 1, width, map_width)
    stop = first_pixel(base + TARGETS, width, map_width)
    while start < stop:
        x = start + tl.arange(0, COLUMNS)
        inside = x < stop
        column, weight = make_tap(x, width, map_width)
        # Pixels left of the tile give it a share, but are counted by the tile they belong to.
        counted = inside & (column >= base)
        top = resized_row(coarse_ptr, row, column, weight, width, inside)
        bottom = resized_row(coarse_ptr, below, column, weight, width, inside)
        d_near = tl.zeros((COLUMNS,), tl.float32)
        d_far = tl.zeros((COLUMNS,), tl.float32)
        low_here = tl.zeros((COLUMNS,), tl.float32)
        low_below = tl.zeros((COLUMNS,), tl.float32)
        peak_here = tl.zeros((COLUMNS,), tl.float32)
        peak_below = tl.zeros((COLUMNS,), tl.float32)
        y = first
        while y < end:
            _, down = make_tap(y, height, map_height)
            value = (top + down * (bottom - top)) * lift
            n = tl.where(flat, 0.0, (value - low) * scale)
            d = tl.load(other_ptr + y * map_width + x, mask=inside, other=0.0).to(tl.float32)
            if LOSS:
                d = n - d
            d = tl.where(inside, d, 0.0)
            once = tl.where(counted, d, 0.0)
            all_d += once
            all_dn += tl.where(counted, d * n, 0.0)
            all_squared += once * once
            d_near += (1.0 - down) * d
            d_far += down * d
            at_low = inside & (value == tied_low)
            at_peak = inside & (value == peak)
            low_count += tl.where(at_low & counted, 1.0, 0.0)
            peak_count += tl.where(at_peak & counted, 1.0, 0.0)
            low_here += tl.where(at_low, 1.0 - down, 0.0)
            low_below += tl.where(at_low, down, 0.0)
            peak_here += tl.where(at_peak, 1.0 - down, 0.0)
            peak_below += tl.where(at_peak, down, 0.0)
            y += 1
        near += pull(d_near, column, weight, target)
        far += pull(d_far, column, weight, target)
        low_near += pull(low_here, column, weight, target)
        low_far += pull(low_below, column, weight, target)
        peak_near += pull(peak_here, column, weight, target)
        peak_far += pull(peak_below, column, weight, target)
        start += COLUMNS
    sums_ptr += program * 8
    tl.store(sums_ptr, tl.sum(all_d, 0))
    tl.store(sums_ptr + 1, tl.sum(all_dn, 0))
    tl.store(sums_ptr + 2, tl.sum(all_squared, 0))
    tl.store(sums_ptr + 3, tl.sum(low_count, 0))
    tl.store(sums_ptr + 4, tl.sum(peak_count, 0))
    arrays_ptr += (image * height + row) * 6 * width + target
    mask = target < width
    tl.store(arrays_ptr, near, mask=mask)
    tl.store(arrays_ptr + width, far, mask=mask)
    tl.store(arrays_ptr + 2 * width, low_near, mask=mask)
    tl.store(arrays_ptr + 3 * width, low_far, mask=mask)
    tl.store(arrays_ptr + 4 * width, peak_near, mask=mask)
    tl.store(arrays_ptr + 5 * width, peak_far, mask=mask)


@triton.jit
def total_of(sums_ptr, which: tl.constexpr, records, BLOCK: tl.constexpr):
    """Returns one of the sums over `records` records, in double."""
    total = tl.zeros((BLOCK,), tl.float64)
    start = 0
    while start < records:
        record = start + tl.arange(0, BLOCK).to(tl.int64)
        value = tl.load(sums_ptr + record * 8 + which, mask=record < records, other=0.0)
        total += value.to(tl.float64)
        start += BLOCK
    return tl.sum(total, 0)


@triton.jit
def slope_kernel(
    coarse_ptr, stretch_ptr, sums_ptr, arrays_ptr, slope_ptr, height, width, records, factor,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (image, tile of positions): the gradient before ReLU; see csrc/cpu/cam_map.cpp."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(height * width, BLOCK)
    image = program // tiles
    position = (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    mask = position < height * width
    sums_ptr += image * records * 8
    d = total_of(sums_ptr, 0, records, BLOCK)
    dn = total_of(sums_ptr, 1, records, BLOCK)
    low_ties = total_of(sums_ptr, 3, records, BLOCK)
    peak_ties = total_of(sums_ptr, 4, records, BLOCK)
    low = tl.where(low_ties > 0.0, (dn - d) / tl.where(low_ties > 0.0, low_ties, 1.0), 0.0)
    peak = tl.where(peak_ties > 0.0, -dn / tl.where(peak_ties > 0.0, peak_ties, 1.0), 0.0)
    scale = tl.load(stretch_ptr + image * 4 + 2)
    lift = tl.load(stretch_ptr + image * 4 + 3)

    row = position // width
    here = arrays_ptr + (image * height + row) * 6 * width + position % width
    above = here - 6 * width
    has_above = mask & (row > 0)
    total = tl.load(here, mask=mask, other=0.0).to(tl.float64)
    total += tl.load(above + width, mask=has_above, other=0.0).to(tl.float64)
    total += low * tl.load(here + 2 * width, mask=mask, other=0.0).to(tl.float64)
    total += low * tl.load(above + 3 * width, mask=has_above, other=0.0).to(tl.float64)
    total += peak * tl.load(here + 4 * width, mask=mask, other=0.0).to(tl.float64)
    total += peak * tl.load(above + 5 * width, mask=has_above, other=0.0).to(tl.float64)
    slope = (total * scale.to(tl.float64) * lift.to(tl.float64) * factor).to(tl.float32)
    coarse = tl.load(coarse_ptr + image * height * width + position, mask=mask, other=0.0)
    slope = tl.where(coarse <= 0.0, 0.0, slope)
    slope = tl.where(scale == 0.0, 0.0, slope)
    tl.store(slope_ptr + image * height * width + position, slope, mask=mask)


@triton.jit
def loss_kernel(sums_ptr, loss_ptr, records, factor, BLOCK: tl.constexpr):
    """Sums the squared differences of all records."""
    total = total_of(sums_ptr, 2, records, BLOCK)
    tl.store(loss_ptr, (total * factor).to(tl.float32))


@triton.jit
def spread_kernel(
    weights_ptr, slope_ptr, factor_ptr, y_ptr, rows, length, rows_per_image, least,
    BY_ELEMENT: tl.constexpr, BY_COLUMN: tl.constexpr, HAS_FACTOR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Weight times slope over (rows, length): channels are rows, or columns when BY_COLUMN."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(length, COLUMNS)
    row = (program // tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows)[:, None] & (column < length)[None, :]
    image = row // rows_per_image
    of_row = tl.broadcast_to(row[:, None], (ROWS, COLUMNS))
    of_column = image[:, None] * length + column[None, :]
    offsets = row[:, None] * length + column[None, :]
    slope = tl.load(slope_ptr + (of_row if BY_COLUMN else of_column), mask=mask, other=0.0)
    if BY_ELEMENT:
        weight = tl.load(weights_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        weight = at_least(weight, least)
    else:
        weight = tl.load(weights_ptr + (of_column if BY_COLUMN else of_row), mask=mask, other=0.0)
    if HAS_FACTOR:
        slope *= tl.load(factor_ptr).to(tl.float32)
    tl.store(y_ptr + offsets, (weight * slope).to(y_ptr.dtype.element_ty), mask=mask)


def pull_back(
    coarse: torch.Tensor, other: torch.Tensor, eps: float, loss: bool, with_slope: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss against `other`, or an empty tensor, and the slope `(B, 1, h, w)`.

    Without `loss`, `other` is the gradient of the map.
    """
    images, _, height, width = coarse.shape
    map_height, map_width = other.shape[2:]
    targets = min(power_of_two(width), COARSE_COLUMNS)
    records = height * triton.cdiv(width, targets)
    stretch = find_stretch(coarse, map_height, map_width, eps)
    sums = coarse.new_empty((images * records, SUMS))
    arrays = coarse.new_empty((images, height, ARRAYS, width))
    value = coarse.new_empty(() if loss else (0,))
    slope = torch.empty_like(coarse) if with_slope else coarse.new_empty((0, 1, height, width))
    with on_device_of(coarse):
        interval_kernel[(images * records,)](
            coarse, stretch, other.contiguous(), sums, arrays, height, width, map_height, map_width,
            LOSS=loss, TARGETS=targets, COLUMNS=min(power_of_two(map_width), COLUMNS),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        if loss:
            loss_kernel[(1,)](
                sums, value, images * records, 1.0 / other.numel(),
                BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        if with_slope:
            slope_kernel[(images * triton.cdiv(height * width, BLOCK),)](
                coarse, stretch, sums, arrays, slope, height, width, records,
                2.0 / other.numel() if loss else 1.0,
                BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return value, slope


def spread(
    weights: torch.Tensor,
    slope: torch.Tensor,
    factor: torch.Tensor | None,
    kind: int,
    clamp: float,
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns weights times slope, `(B, C, h, w)` in the layout and type asked for."""
    images, _, height, width = slope.shape
    channels, positions = weights.shape[1], height * width
    by_element = kind in (LAYER_CAM, HIRES_CAM)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    result = torch.empty(
        (images, channels, height, width), dtype=dtype, device=slope.device,
        memory_format=memory_format,
    )  # fmt: skip
    if result.numel() == 0:
        return result
    weights = weights.contiguous(memory_format=memory_format) if by_element else weights
    rows_per_image, length = (positions, channels) if channels_last else (channels, positions)
    elements, warps = block_shape("spread_kernel", dtype, layout_name(channels_last))
    columns = min(power_of_two(length), elements, SPREAD_COLUMNS)
    rows = elements // columns
    grid = (triton.cdiv(images * rows_per_image, rows) * triton.cdiv(length, columns),)
    y = output_like(result)
    with on_device_of(slope):
        spread_kernel[grid](
            weights.contiguous() if not by_element else weights, slope.contiguous(),
            slope if factor is None else factor, y, images * rows_per_image, length,
            rows_per_image, least_weight(kind, clamp), BY_ELEMENT=by_element,
            BY_COLUMN=channels_last, HAS_FACTOR=factor is not None, ROWS=rows, COLUMNS=columns,
            num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return finished(y, result)
