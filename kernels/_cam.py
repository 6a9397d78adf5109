"""Coarse class activation maps, bilinear resizing and stretching, in Triton.

Kernels are launched with `enable_fp_fusion=False`: the extrema found by one kernel must be the
values that another computes.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import maximum_of, minimum_of
from synq_fast.kernels._layout import on_device_of, power_of_two

# As in csrc/cam.h.
GRAD_CAM, PLUS_PLUS, LAYER_CAM, HIRES_CAM = range(4)
TILE = 2048
COLUMNS = 128
FEW_POSITIONS = 256  # of which a program holds all, of several channels
TARGET_PROGRAMS = 1024
SUMS = 4096  # of the shares of one image


@triton.jit
def at_least(value, least):
    """Returns the greater of the two; NaN stays."""
    return tl.where(value < least, least, value)


@triton.jit
def make_tap(pixel, small, large):
    """Returns the left neighbour of a pixel and the weight of the right one, in integers."""
    position = small * (2 * pixel.to(tl.int64) + 1) - large
    index = tl.maximum(position, 0) // (2 * large)
    last = index >= small - 1
    weight = (position - index * 2 * large).to(tl.float32)
    weight = tl.div_rn(weight, tl.zeros_like(weight) + 2 * large)
    return tl.where(last, small - 1, index), tl.where(last | (position <= 0), 0.0, weight)


@triton.jit
def first_pixel(index, small, large):
    """Returns the first pixel whose left neighbour is `index`."""
    position = large * (2 * index + 1) - small
    pixel = tl.minimum((tl.maximum(position, 0) + 2 * small - 1) // (2 * small), large)
    return tl.where(index <= 0, 0, tl.where(index >= small, large, pixel))


@triton.jit
def resized_row(coarse_ptr, row, column, weight, width, mask):
    """Returns pixels of one coarse row, resized along it."""
    left = tl.load(coarse_ptr + row * width + column, mask=mask, other=0.0)
    right = tl.minimum(column + 1, width - 1)
    right = tl.load(coarse_ptr + row * width + right, mask=mask, other=0.0)
    return left + weight * (right - left)


@triton.jit
def plus_plus_terms(g, total, score_ptr, clamp):
    """Returns what each position adds to a weight of Grad-CAM++; `total` is that of activations.

    Numerator and denominator of alpha are divided by g^2, which would underflow; a denominator
    nearer to zero than `clamp` counts as zero.
    """
    score = tl.load(score_ptr)
    # exp(score) is a factor of the whole map, which stretching removes: NaN alone stays.
    slope = at_least(g, 0.0) * tl.where(score != score, score, 1.0)
    denominator = total * g + 2.0
    size = tl.abs(denominator)
    vanishes = (size < clamp) | (size == 0.0)
    term = tl.where(vanishes, slope * g * g, slope)
    return tl.div_rn(term, tl.where(vanishes, 1.0, denominator))


@triton.jit
def shares_kernel(
    a_ptr, g_ptr, score_ptr, weights_ptr, sums_ptr, channels, positions, size,
    a_image, a_channel, a_position, g_image, g_channel, g_position, clamp, least,
    PLUS_PLUS: tl.constexpr, BY_ELEMENT: tl.constexpr,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Program (image, share) reads `size` channels of an image once, of few positions.

    It finds their weights, and the share's sums of weighted activations.
    """
    program = tl.program_id(0).to(tl.int64)
    shares = tl.cdiv(channels, size)
    image = program // shares
    start = program % shares * size
    end = tl.minimum(start + size, channels)
    position = tl.arange(0, POSITIONS)
    a_ptr += image * a_image + position[None, :] * a_position
    g_ptr += image * g_image + position[None, :] * g_position
    sums = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    while start < end:  # the interpreter cannot run `range` over tensors with every NumPy
        channel = start + tl.arange(0, CHANNELS)
        mask = (channel < end)[:, None] & (position < positions)[None, :]
        a = tl.load(a_ptr + channel[:, None] * a_channel, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + channel[:, None] * g_channel, mask=mask, other=0.0).to(tl.float32)
        if BY_ELEMENT:
            weighted = a * at_least(g, least)
        else:
            if PLUS_PLUS:
                terms = plus_plus_terms(g, tl.sum(a, 1)[:, None], score_ptr + image, clamp)
                weight = tl.sum(tl.where(mask, terms, 0.0), 1)
            else:
                weight = tl.sum(g, 1)
                weight = at_least(tl.div_rn(weight, tl.zeros_like(weight) + positions), clamp)
            tl.store(weights_ptr + image * channels + channel, weight, mask=channel < end)
            weighted = a * weight[:, None]
        sums += tl.where(mask, weighted, 0.0)
        start += CHANNELS
    target = sums_ptr + program * positions + position
    tl.store(target, tl.sum(sums, 0), mask=position < positions)


@triton.jit
def join_kernel(
    sums_ptr, coarse_ptr, shares, positions, SHARES: tl.constexpr, POSITIONS: tl.constexpr
):
    """Program (image) adds the shares of a coarse map."""
    image = tl.program_id(0).to(tl.int64)
    share, position = tl.arange(0, SHARES), tl.arange(0, POSITIONS)
    mask = (share < shares)[:, None] & (position < positions)[None, :]
    place = (image * shares + share)[:, None] * positions + position[None, :]
    sums = tl.sum(tl.load(sums_ptr + place, mask=mask, other=0.0), 0)
    tl.store(
        coarse_ptr + image * positions + position, at_least(sums, 0.0), mask=position < positions
    )


@triton.jit
def weights_kernel(
    a_ptr, g_ptr, score_ptr, weights_ptr, channels, positions,
    a_image, a_channel, a_position, g_image, g_channel, g_position, clamp,
    PLUS_PLUS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Program (image, tile of channels) finds the weights of Grad-CAM or Grad-CAM++."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(channels, CHANNELS)
    image = program // tiles
    channel = (program % tiles) * CHANNELS + tl.arange(0, CHANNELS)
    a_ptr += image * a_image + channel[:, None] * a_channel
    g_ptr += image * g_image + channel[:, None] * g_channel
    sums = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    start = 0
    while start < positions:  # the interpreter cannot run `range` over tensors with every NumPy
        position = start + tl.arange(0, POSITIONS)
        mask = (channel < channels)[:, None] & (position < positions)[None, :]
        if PLUS_PLUS:
            value = tl.load(a_ptr + position[None, :] * a_position, mask=mask, other=0.0)
        else:
            value = tl.load(g_ptr + position[None, :] * g_position, mask=mask, other=0.0)
        sums += value.to(tl.float32)
        start += POSITIONS
    weight = tl.sum(sums, 1)
    if PLUS_PLUS:
        total = weight[:, None]
        sums = tl.zeros((CHANNELS, POSITIONS), tl.float32)
        start = 0
        while start < positions:
            position = start + tl.arange(0, POSITIONS)
            mask = (channel < channels)[:, None] & (position < positions)[None, :]
            g = tl.load(g_ptr + position[None, :] * g_position, mask=mask, other=0.0)
            terms = plus_plus_terms(g.to(tl.float32), total, score_ptr + image, clamp)
            sums += tl.where(mask, terms, 0.0)
            start += POSITIONS
        weight = tl.sum(sums, 1)
    else:
        weight = at_least(tl.div_rn(weight, tl.zeros_like(weight) + positions), clamp)
    tl.store(weights_ptr + image * channels + channel, weight, mask=channel < channels)


@triton.jit
def coarse_kernel(
    a_ptr, g_ptr, weights_ptr, coarse_ptr, channels, positions,
    a_image, a_channel, a_position, g_image, g_channel, g_position, least,
    BY_ELEMENT: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Program (image, tile of positions) sums weighted activations over the channels."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(positions, POSITIONS)
    image = program // tiles
    position = (program % tiles) * POSITIONS + tl.arange(0, POSITIONS)
    a_ptr += image * a_image + position[None, :] * a_position
    g_ptr += image * g_image + position[None, :] * g_position
    sums = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    start = 0
    while start < channels:
        channel = start + tl.arange(0, CHANNELS)
        mask = (channel < channels)[:, None] & (position < positions)[None, :]
        a = tl.load(a_ptr + channel[:, None] * a_channel, mask=mask, other=0.0).to(tl.float32)
        if BY_ELEMENT:
            g = tl.load(g_ptr + channel[:, None] * g_channel, mask=mask, other=0.0)
            weight = at_least(g.to(tl.float32), least)
        else:
            weight = tl.load(
                weights_ptr + image * channels + channel, mask=channel < channels, other=0.0
            )[:, None]
        sums += weight * a
        start += CHANNELS
    coarse = at_least(tl.sum(sums, 0), 0.0)
    tl.store(coarse_ptr + image * positions + position, coarse, mask=position < positions)


@triton.jit
def stretch_kernel(
    coarse_ptr, stretch_ptr, height, width, map_height, map_width, eps, COLUMNS: tl.constexpr
):
    """Program (image) finds low, peak, scale, lift of the resized map; a flat one has scale 0.

    Between two coarse rows the extrema are at the first or the last row of pixels.
    """
    image = tl.program_id(0).to(tl.int64)
    coarse_ptr += image * height * width
    lows = tl.full((COLUMNS,), float("inf"), tl.float32)
    peaks = tl.full((COLUMNS,), float("-inf"), tl.float32)
    start = 0
    while start < map_width:
        x = start + tl.arange(0, COLUMNS)
        inside = x < map_width
        column, weight = make_tap(x, width, map_width)
        row = image * 0
        while row < height:
            top = resized_row(coarse_ptr, row, column, weight, width, inside)
            below = tl.minimum(row + 1, height - 1)
            bottom = resized_row(coarse_ptr, below, column, weight, width, inside)
            first = first_pixel(row, height, map_height)
            last = first_pixel(row + 1, height, map_height) - 1
            _, near = make_tap(first, height, map_height)
            _, far = make_tap(last, height, map_height)
            used = inside & (first <= last)
            near_value = tl.where(used, top + near * (bottom - top), float("inf"))
            far_value = tl.where(used, top + far * (bottom - top), float("inf"))
            ends = tl.minimum(near_value, far_value, propagate_nan=tl.PropagateNan.ALL)
            lows = tl.minimum(lows, ends, propagate_nan=tl.PropagateNan.ALL)
            near_value = tl.where(used, near_value, float("-inf"))
            far_value = tl.where(used, far_value, float("-inf"))
            ends = tl.maximum(near_value, far_value, propagate_nan=tl.PropagateNan.ALL)
            peaks = tl.maximum(peaks, ends, propagate_nan=tl.PropagateNan.ALL)
            row += 1
        start += COLUMNS
    low = minimum_of(lows, 0)
    peak = maximum_of(peaks, 0)
    spread = peak - low
    flat = (spread < 1e-6 * peak) | (peak == 0.0)
    divisor = spread + eps
    # A power of two keeps the scale a normal number.
    lift = tl.where(divisor < 2.0**-100, 2.0**100, tl.where(divisor > 2.0**100, 2.0**-100, 1.0))
    scale = tl.div_rn(lift * 0.0 + 1.0, tl.where(flat, 1.0, divisor * lift))
    tl.store(stretch_ptr + image * 4, low * lift)
    tl.store(stretch_ptr + image * 4 + 1, peak * lift)
    tl.store(stretch_ptr + image * 4 + 2, tl.where(flat, 0.0, scale))
    tl.store(stretch_ptr + image * 4 + 3, lift)


class Strides(NamedTuple):
    """Distances in elements from image to image, channel to channel, position to position."""

    image: int
    channel: int
    position: int


def strided(x: torch.Tensor) -> tuple[torch.Tensor, Strides]:
    """Returns `(B, C, h, w)` images whose positions are evenly spaced, copied if they are not."""
    _, _, height, width = x.shape
    if height > 1 and width > 1 and x.stride(2) != width * x.stride(3):
        x = x.contiguous()
    return x, Strides(x.stride(0), x.stride(1), x.stride(2) if width == 1 else x.stride(3))


def least_weight(kind: int, clamp: float) -> float:
    """Returns the least weight of one activation."""
    return clamp if kind == LAYER_CAM else float("-inf")


def make_coarse(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    score: torch.Tensor | None,
    kind: int,
    clamp: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weights `(B, C)`, or `(B, 0)` by element, and the map `(B, 1, h, w)`."""
    images, channels, height, width = activations.shape
    positions = height * width
    by_element = kind in (LAYER_CAM, HIRES_CAM)
    a, a_strides = strided(activations)
    g, g_strides = strided(gradients)
    weights = a.new_empty((images, 0 if by_element else channels), dtype=torch.float32)
    coarse = a.new_empty((images, 1, height, width), dtype=torch.float32)
    if coarse.numel() == 0:
        return weights, coarse
    score = a if score is None else score.contiguous()
    if positions <= FEW_POSITIONS:
        wide = power_of_two(positions)
        tall = min(power_of_two(channels), TILE // wide)
        units = triton.cdiv(channels, tall)
        shares = min(units, triton.cdiv(TARGET_PROGRAMS, images), SUMS // wide)
        size = triton.cdiv(units, shares) * tall
        shares = triton.cdiv(channels, size)
        sums = a.new_empty((images, shares, positions), dtype=torch.float32)
        with on_device_of(a):
            shares_kernel[(images * shares,)](
                a, g, score, weights, sums, channels, positions, size, *a_strides, *g_strides,
                clamp, least_weight(kind, clamp), PLUS_PLUS=kind == PLUS_PLUS,
                BY_ELEMENT=by_element, CHANNELS=tall, POSITIONS=wide, num_warps=8,
                enable_fp_fusion=False,
            )  # fmt: skip
            join_kernel[(images,)](
                sums, coarse, shares, positions, SHARES=power_of_two(shares), POSITIONS=wide,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        return weights, coarse
    by_column = a_strides.channel == 1 and channels > 1
    columns = min(power_of_two(positions), 16 if by_column else 64)
    rows = min(power_of_two(channels), TILE // columns)
    with on_device_of(a):
        if not by_element:
            wide = min(power_of_two(positions), 16 if by_column else 128)
            tall = min(power_of_two(channels), 128 if by_column else 16)
            weights_kernel[(images * triton.cdiv(channels, tall),)](
                a, g, score, weights, channels, positions,
                *a_strides, *g_strides, clamp, PLUS_PLUS=kind == PLUS_PLUS,
                CHANNELS=tall, POSITIONS=wide, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        coarse_kernel[(images * triton.cdiv(positions, columns),)](
            a, g, weights, coarse, channels, positions, *a_strides, *g_strides,
            least_weight(kind, clamp), BY_ELEMENT=by_element, CHANNELS=rows, POSITIONS=columns,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return weights, coarse


def find_stretch(coarse: torch.Tensor, height: int, width: int, eps: float) -> torch.Tensor:
    """Returns low, peak, scale and lift of each resized map, `(B, 4)`."""
    stretch = coarse.new_empty((coarse.shape[0], 4))
    with on_device_of(coarse):
        stretch_kernel[(coarse.shape[0],)](
            coarse, stretch, *coarse.shape[2:], height, width, eps,
            COLUMNS=min(power_of_two(width), COLUMNS), num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return stretch
