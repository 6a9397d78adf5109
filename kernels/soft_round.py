"""Soft rounding with its penalty, and their gradients, each in one pass and a sum of its parts.

Each program sums a part of a channel, or of neighbouring channels, in float32; a second kernel adds
the parts in float64. Parts have fixed places, so every run gives the same bits.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import learned_grid
from synq_fast.kernels._channel_sums import divide
from synq_fast.kernels._layout import dense, laid_out_as, on_device_of, power_of_two

SUMS = 1024


@triton.jit
def power_of(u, exponent):
    """Returns `u ** exponent` for `u` from 0 to 1."""
    bounded = tl.maximum(u, 1.2e-38, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp2(exponent * tl.log2(bounded))


@triton.jit
def rounding_kernel(
    v_ptr, base_ptr, gradient_ptr, y_ptr, sums_ptr, scale_ptr, zero_point_ptr, exponent_ptr,
    of_penalty_ptr, outer, channels, inner, splits, half, BACKWARD: tl.constexpr,
    OF_WEIGHTS: tl.constexpr, OF_PENALTY: tl.constexpr, BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (channels, split) handles every `splits`-th tile; sums are (channels, splits).

    Forward it stores the weights and sums the penalty. BACKWARD it stores the gradient of `v`, of
    those results whose gradients are there, and sums that of the scale.
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
    scale, zero_point = learned_grid(
        tl.load(scale_ptr + channel), tl.load(zero_point_ptr + channel)
    )
    if BY_COLUMN:
        scale = scale[None, :]
        zero_point = zero_point[None, :]
    exponent = tl.load(exponent_ptr)
    of_penalty = 0.0
    if OF_PENALTY:
        of_penalty = tl.load(of_penalty_ptr) * 2.0 * exponent
    sums = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    tile = split
    while tile < tiles:  # the interpreter cannot run `range` over tensors with every NumPy
        row = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
        column = (group if BY_COLUMN else tile % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
        if BY_COLUMN:
            offsets = row[:, None] * channels + column[None, :]
        else:
            offsets = (row[:, None] * channels + group) * inner + column[None, :]
        mask = (row < outer)[:, None] & (column < columns)[None, :]
        v = tl.load(v_ptr + offsets, mask=mask, other=0.0)
        sigmoid = tl.div_rn(tl.full(v.shape, 1.0, tl.float32), 1.0 + tl.exp(-v))
        h = tl.clamp(sigmoid * 1.2 - 0.1, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        distance = h * 2.0 - 1.0
        base = tl.load(base_ptr + offsets, mask=mask, other=0).to(tl.float32)
        code = tl.clamp(base + h, -half, half - 1.0, propagate_nan=tl.PropagateNan.ALL)
        if BACKWARD:
            of_h = tl.full(v.shape, 0.0, tl.float32)
            if OF_WEIGHTS:
                gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0)
                # Between two levels of the grid, which 0 < h < 1 leaves to the base alone.
                inside = (base >= -half) & (base < half - 1.0)
                of_h = tl.where(inside, tl.div_rn(gradient, tl.broadcast_to(scale, v.shape)), 0.0)
                sums += tl.where(mask, gradient * (code + zero_point), 0.0)
            if OF_PENALTY:
                slope = power_of(tl.abs(distance), exponent - 1.0) * of_penalty
                of_h -= tl.where(distance > 0.0, slope, tl.where(distance < 0.0, -slope, 0.0))
            of_v = of_h * (sigmoid * (1.0 - sigmoid) * 1.2)
            y = tl.where((h <= 0.0) | (h >= 1.0), 0.0, of_v)
        else:
            sums += tl.where(mask, 1.0 - power_of(tl.abs(distance), exponent), 0.0)
            y = tl.div_rn(code + zero_point, tl.broadcast_to(scale, v.shape))
        tl.store(y_ptr + offsets, y, mask=mask)
        tile += splits
    if BY_COLUMN:
        place = group * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(sums_ptr + place * splits + split, tl.sum(sums, 0), mask=place < channels)
    else:
        tl.store(sums_ptr + program, tl.sum(tl.sum(sums, 1), 0))


@triton.jit
def penalty_kernel(sums_ptr, penalty_ptr, count, SUMS: tl.constexpr):
    """Adds all sums."""
    total = tl.full((SUMS,), 0.0, tl.float64)
    start = tl.full((), 0, tl.int64)
    while start < count:
        index = start + tl.arange(0, SUMS)
        total += tl.load(sums_ptr + index, mask=index < count, other=0.0).to(tl.float64)
        start += SUMS
    tl.store(penalty_ptr, tl.sum(total, 0).to(tl.float32))


@triton.jit
def scales_kernel(sums_ptr, scale_ptr, of_scale_ptr, splits, SPLITS: tl.constexpr):
    """Adds one channel's sums to the gradient of its scale."""
    channel = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    sums = tl.load(sums_ptr + channel * splits + split, mask=split < splits, other=0.0)
    scale = tl.load(scale_ptr + channel).to(tl.float64)
    total = tl.sum(sums.to(tl.float64), 0) / (scale * scale)
    tl.store(of_scale_ptr + channel, (-total).to(tl.float32))


def soft_round(
    v: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    exponent: torch.Tensor,
    bits: int,
    axis: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weights, laid out as `v`, and the penalty, 0-d."""
    v, layout = dense(v, axis)
    w, penalty = torch.empty_like(v), v.new_empty(())
    if v.numel() == 0:
        return w, penalty.zero_()
    rows, columns, groups, splits = divide(layout)
    sums = v.new_empty(layout.channels * splits)
    with on_device_of(v):
        rounding_kernel[(groups * splits,)](
            v, _codes_as(base, v), v, w, sums, scale.contiguous(), zero_point.contiguous(),
            exponent, v, *layout, splits, float(2 ** (bits - 1)),
            BACKWARD=False, OF_WEIGHTS=False, OF_PENALTY=False,
            BY_COLUMN=layout.by_column, ROWS=rows, COLUMNS=columns,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        penalty_kernel[(1,)](sums, penalty, sums.numel(), SUMS=SUMS, num_warps=4)
    return w, penalty


def soft_round_backward(
    grad_w: torch.Tensor | None,
    grad_penalty: torch.Tensor | None,
    v: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    exponent: torch.Tensor,
    bits: int,
    axis: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of `v` and of the scale; an incoming one may be missing."""
    v, layout = dense(v, axis)
    of_v = torch.empty_like(v)
    if v.numel() == 0 or grad_w is grad_penalty is None:
        return of_v.zero_(), torch.zeros_like(scale)
    rows, columns, groups, splits = divide(layout)
    sums = v.new_empty(layout.channels * splits)
    scale_of = scale.contiguous()
    with on_device_of(v):
        rounding_kernel[(groups * splits,)](
            v, _codes_as(base, v), v if grad_w is None else laid_out_as(grad_w, v), of_v, sums,
            scale_of, zero_point.contiguous(), exponent,
            exponent if grad_penalty is None else grad_penalty,
            *layout, splits, float(2 ** (bits - 1)),
            BACKWARD=True, OF_WEIGHTS=grad_w is not None, OF_PENALTY=grad_penalty is not None,
            BY_COLUMN=layout.by_column, ROWS=rows, COLUMNS=columns,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        if grad_w is None:
            return of_v, torch.zeros_like(scale)
        of_scale = scale.new_empty(scale.shape)
        scales_kernel[(layout.channels,)](
            sums, scale_of, of_scale, splits, SPLITS=power_of_two(splits), num_warps=1
        )
    return of_v, of_scale


def _codes_as(base: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Returns the codes with the strides of `v`, copied only if they differ."""
    same = base.stride() == v.stride()
    return base if same else torch.empty_like(v, dtype=base.dtype).copy_(base)
