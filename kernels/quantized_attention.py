"""Attention on quantized operands, and its gradients.

A program handles a tile of queries, or of keys where sums go over the queries; products are of
codes, which are quantized whenever they are read. Rows are gone through in two passes, for the
moments of the softmax and for the rounded probabilities; backward, the kernel of queries writes
down what it knows of a row for the kernel of keys. Sums have a place for each program, so every
run gives the same bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize
from synq_fast.kernels._attention import (
    finish_rows,
    grids_of,
    incoming,
    kept_moments,
    logits_of,
    moments_of,
    multiply,
    read_codes,
    slopes_of,
)
from synq_fast.kernels._layout import on_device_of, output_like, power_of_two
from synq_fast.kernels._probabilities import (
    probability_code,
    probability_grid,
    probability_value,
)
from synq_fast.kernels._rows import restored

TILE = 16
LEAST_WIDTH = 16  # of a product of tiles
MOST_PARTS = 8
WARPS = 4


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, grids_ptr, bias_ptr, mask_ptr, heads, masks, rows, columns, width,
    alpha, q_half, k_half, v_half, p_half, p_least,
    LOG: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Program: (image, head, tile of queries); probabilities are powers of two if LOG."""
    tiles = tl.cdiv(rows, TILE)
    program = tl.program_id(0).to(tl.int64)
    index = program // tiles
    head = index % heads
    first_row = (program % tiles) * TILE
    q_scale, q_zero, k_scale, k_zero, v_scale, v_zero, p_scale, factor = grids_of(
        grids_ptr, head, heads, alpha
    )
    keys = k_ptr + index * columns * width
    values = v_ptr + index * columns * width
    bias = bias_ptr + head * rows * columns
    mask = mask_ptr + (index // heads) % masks * rows * columns
    start = index * rows * width
    q = read_codes(q_ptr + start, first_row, rows, width, q_scale, q_zero, q_half, TILE, WIDTH)
    most, inverse = moments_of(
        q, keys, bias, mask, first_row, index * 0, rows, columns, width, factor, k_scale, k_zero,
        k_half, BIAS, MASK, TILE, WIDTH,
    )  # fmt: skip
    row = first_row + tl.arange(0, TILE)
    result = tl.zeros((TILE, WIDTH), tl.float32)
    first = index * 0
    while first < columns:
        k = read_codes(keys, first, columns, width, k_scale, k_zero, k_half, TILE, WIDTH)
        column = first + tl.arange(0, TILE)
        logits = logits_of(
            multiply(q, tl.trans(k)), factor, bias, mask, row[:, None], column[None, :],
            rows, columns, BIAS, MASK,
        )  # fmt: skip
        p = tl.exp(logits - most[:, None]) * inverse[:, None]
        code = probability_code(p, p_scale, p_half, p_least, LOG)
        v = read_codes(values, first, columns, width, v_scale, v_zero, v_half, TILE, WIDTH)
        result += multiply(tl.where((column < columns)[None, :], code, 0.0), v)
        first += TILE
    result = dequantize(probability_value(result, p_scale, LOG), v_scale, 0.0)
    place = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (place < width)[None, :]
    target = y_ptr + start + row[:, None] * width + place[None, :]
    tl.store(target, result.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def attention_moments_kernel(
    q_ptr, k_ptr, v_ptr, gradient_ptr, grids_ptr, bias_ptr, mask_ptr, moments_ptr, sums_ptr, heads,
    masks, rows, columns, width, alpha, q_half, k_half, v_half, p_half, p_least,
    LOG: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Program: (image, head, tile of queries).

    Of each row the greatest logit, the inverse of the sum of exponentials, and the sum of gradient
    times probability; and a sum for the scale of probabilities.
    """
    tiles = tl.cdiv(rows, TILE)
    program = tl.program_id(0).to(tl.int64)
    index = program // tiles
    head = index % heads
    first_row = (program % tiles) * TILE
    q_scale, q_zero, k_scale, k_zero, v_scale, v_zero, p_scale, factor = grids_of(
        grids_ptr, head, heads, alpha
    )
    bias = bias_ptr + head * rows * columns
    mask = mask_ptr + (index // heads) % masks * rows * columns
    start = index * rows * width
    keys = k_ptr + index * columns * width
    values = v_ptr + index * columns * width
    q = read_codes(q_ptr + start, first_row, rows, width, q_scale, q_zero, q_half, TILE, WIDTH)
    most, inverse = moments_of(
        q, keys, bias, mask, first_row, index * 0, rows, columns, width, factor, k_scale, k_zero,
        k_half, BIAS, MASK, TILE, WIDTH,
    )  # fmt: skip
    gradient = incoming(gradient_ptr + start, first_row, rows, width, TILE, WIDTH)
    row = first_row + tl.arange(0, TILE)
    along = tl.zeros((TILE,), tl.float32)
    terms = tl.zeros((TILE,), tl.float32)
    first = index * 0
    while first < columns:
        column = first + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        k = read_codes(keys, first, columns, width, k_scale, k_zero, k_half, TILE, WIDTH)
        logits = logits_of(
            multiply(q, tl.trans(k)), factor, bias, mask, row[:, None], column[None, :], rows,
            columns, BIAS, MASK,
        )  # fmt: skip
        v = read_codes(values, first, columns, width, v_scale, v_zero, v_half, TILE, WIDTH)
        p, slope, term = slopes_of(
            logits, most, inverse, gradient, v, v_scale, p_scale, p_half, p_least, inside, LOG
        )
        along += tl.sum(slope * p, 1)
        terms += tl.sum(term, 1)
        first += TILE
    moments = moments_ptr + (index * rows + row) * 3
    tl.store(moments, most, mask=row < rows)
    tl.store(moments + 1, inverse, mask=row < rows)
    tl.store(moments + 2, along, mask=row < rows)
    tl.store(sums_ptr + program, tl.sum(terms, 0))


@triton.jit
def attention_query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, gradient_ptr, of_q_ptr, grids_ptr, bias_ptr, mask_ptr, moments_ptr,
    sums_ptr, of_bias_ptr, images, size, heads, masks, rows, columns, width, alpha, q_half, k_half,
    v_half, p_half, p_least,
    LOG: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, OF_BIAS: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Program: (part of `size` images, head, tile of queries); the sums of q's grid."""
    tiles = tl.cdiv(rows, TILE)
    program = tl.program_id(0).to(tl.int64)
    head = (program // tiles) % heads
    first_row = (program % tiles) * TILE
    part = program // tiles // heads
    q_scale, q_zero, k_scale, k_zero, v_scale, v_zero, p_scale, factor = grids_of(
        grids_ptr, head, heads, alpha
    )
    bias = bias_ptr + head * rows * columns
    row = first_row + tl.arange(0, TILE)
    of_scale = q_scale * 0.0
    of_zero = q_scale * 0.0
    image = part * size
    end = tl.minimum(image + size, images)
    while image < end:
        index = image * heads + head
        start = index * rows * width
        keys = k_ptr + index * columns * width
        values = v_ptr + index * columns * width
        mask = mask_ptr + image % masks * rows * columns
        q = read_codes(q_ptr + start, first_row, rows, width, q_scale, q_zero, q_half, TILE, WIDTH)
        gradient = incoming(gradient_ptr + start, first_row, rows, width, TILE, WIDTH)
        most, inverse, along = kept_moments(moments_ptr, index, row, rows)
        of_y = tl.zeros((TILE, WIDTH), tl.float32)
        first = index * 0
        while first < columns:
            column = first + tl.arange(0, TILE)
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            k = read_codes(keys, first, columns, width, k_scale, k_zero, k_half, TILE, WIDTH)
            logits = logits_of(
                multiply(q, tl.trans(k)), factor, bias, mask, row[:, None], column[None, :], rows,
                columns, BIAS, MASK,
            )  # fmt: skip
            v = read_codes(values, first, columns, width, v_scale, v_zero, v_half, TILE, WIDTH)
            p, slope, _term = slopes_of(
                logits, most, inverse, gradient, v, v_scale, p_scale, p_half, p_least, inside, LOG
            )
            slope = tl.where(inside, p * (slope - along[:, None]), 0.0)
            of_y += multiply(slope, k)
            if OF_BIAS:
                base = (part * heads + head) * rows
                target = of_bias_ptr + (base + row[:, None]) * columns + column[None, :]
                again = inside & (image > part * size)
                before = tl.load(target, mask=again, other=0.0)
                tl.store(target, before + slope, mask=inside)
            first += TILE
        one, other = finish_rows(
            q_ptr + start, of_q_ptr + start, first_row, rows, width,
            dequantize(of_y, k_scale, 0.0) * alpha, q_scale, q_zero, q_half, TILE, WIDTH,
        )  # fmt: skip
        of_scale += one
        of_zero += other
        image += 1
    tl.store(sums_ptr + program * 2, of_scale)
    tl.store(sums_ptr + program * 2 + 1, of_zero)


@triton.jit
def attention_key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, gradient_ptr, of_k_ptr, of_v_ptr, grids_ptr, bias_ptr, mask_ptr,
    moments_ptr, sums_ptr, heads, masks, rows, columns, width, alpha, q_half, k_half, v_half,
    p_half, p_least,
    LOG: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Program: (image, head, tile of keys); the sums of k's grid and of v's."""
    tiles = tl.cdiv(columns, TILE)
    program = tl.program_id(0).to(tl.int64)
    index = program // tiles
    head = index % heads
    first_key = (program % tiles) * TILE
    q_scale, q_zero, k_scale, k_zero, v_scale, v_zero, p_scale, factor = grids_of(
        grids_ptr, head, heads, alpha
    )
    bias = bias_ptr + head * rows * columns
    mask = mask_ptr + (index // heads) % masks * rows * columns
    start = index * rows * width
    own = index * columns * width
    k = read_codes(k_ptr + own, first_key, columns, width, k_scale, k_zero, k_half, TILE, WIDTH)
    v = read_codes(v_ptr + own, first_key, columns, width, v_scale, v_zero, v_half, TILE, WIDTH)
    column = first_key + tl.arange(0, TILE)
    of_k = tl.zeros((TILE, WIDTH), tl.float32)
    of_v = tl.zeros((TILE, WIDTH), tl.float32)
    first = index * 0
    while first < rows:
        row = first + tl.arange(0, TILE)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        q = read_codes(q_ptr + start, first, rows, width, q_scale, q_zero, q_half, TILE, WIDTH)
        gradient = incoming(gradient_ptr + start, first, rows, width, TILE, WIDTH)
        most, inverse, along = kept_moments(moments_ptr, index, row, rows)
        logits = logits_of(
            multiply(q, tl.trans(k)), factor, bias, mask, row[:, None], column[None, :],
            rows, columns, BIAS, MASK,
        )  # fmt: skip
        p, slope, _term = slopes_of(
            logits, most, inverse, gradient, v, v_scale, p_scale, p_half, p_least, inside, LOG
        )
        slope = tl.where(inside, p * (slope - along[:, None]), 0.0)
        code = probability_code(p, p_scale, p_half, p_least, LOG)
        of_v += multiply(tl.trans(tl.where(inside, code, 0.0)), gradient)
        of_k += multiply(tl.trans(slope), q)
        first += TILE
    one, other = finish_rows(
        k_ptr + own, of_k_ptr + own, first_key, columns, width,
        dequantize(of_k, q_scale, 0.0) * alpha, k_scale, k_zero, k_half, TILE, WIDTH,
    )  # fmt: skip
    tl.store(sums_ptr + program * 4, one)
    tl.store(sums_ptr + program * 4 + 1, other)
    one, other = finish_rows(
        v_ptr + own, of_v_ptr + own, first_key, columns, width,
        probability_value(of_v, p_scale, LOG), v_scale, v_zero, v_half, TILE, WIDTH,
    )  # fmt: skip
    tl.store(sums_ptr + program * 4 + 2, one)
    tl.store(sums_ptr + program * 4 + 3, other)


class _Call:
    """What all kernels of a call are given."""

    def __init__(
        self,
        operands: Sequence[torch.Tensor],
        grids: Sequence[torch.Tensor],
        bias: torch.Tensor | None,
        mask: torch.Tensor | None,
        bits: Sequence[int],
        alpha: float,
        log2: bool,
    ) -> None:
        q, k, _ = operands
        self.batch, self.heads, self.rows, self.width = q.shape
        self.columns = k.shape[2]
        self.operands = tuple(x.contiguous() for x in operands)
        self.log2 = log2
        halves = [float(2 ** (width - 1)) for width in bits[:3]]
        # (operand, 2, head), of which a grid in all is a repetition; probabilities have no zero.
        self.grids = torch.stack([value.reshape(-1).expand(self.heads) for value in grids])
        nothing = self.grids
        summands = [nothing if x is None else x.contiguous() for x in (bias, mask)]
        self.before = (self.grids, *summands)
        self.sizes = (
            self.heads, 1 if mask is None else mask.shape[0], self.rows, self.columns, self.width,
            alpha, *halves, *probability_grid(bits[3], log2),
        )  # fmt: skip
        self.options = {
            "LOG": log2, "BIAS": bias is not None, "MASK": mask is not None, "TILE": TILE,
            "WIDTH": max(power_of_two(self.width), LEAST_WIDTH), "num_warps": WARPS,
            "enable_fp_fusion": False,
        }  # fmt: skip

    def programs(self, rows: int) -> int:
        """Returns how many tiles of rows all heads of an image have."""
        return self.heads * triton.cdiv(rows, TILE)


def quantized_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *arguments: Any
) -> torch.Tensor:
    """Returns the attention's output, in the dtype and layout of `q`."""
    *grids, bias, mask, bits, alpha, log2 = arguments
    call = _Call((q, k, v), grids, bias, mask, bits, alpha, log2)
    y = output_like(call.operands[0])
    if q.numel() > 0:
        with on_device_of(q):
            attention_kernel[(call.batch * call.programs(call.rows),)](
                *call.operands, y, *call.before, *call.sizes, **call.options
            )
    return restored(y, q)


def quantized_attention_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *arguments: Any,
) -> tuple[torch.Tensor, ...]:
    """Returns the gradients of q, k and v, of the seven parameters of grids, and of the bias."""
    *grids, bias, mask, bits, alpha, log2, gradient_scales, of_bias = arguments
    call = _Call((q, k, v), grids, bias, mask, bits, alpha, log2)
    results = [output_like(x) for x in call.operands]
    size = triton.cdiv(call.batch, MOST_PARTS) if of_bias else 1
    parts = triton.cdiv(call.batch, size) if call.batch else 0
    shape = parts, call.heads, call.rows, call.columns
    floats = call.grids.new_empty
    row_tiles = triton.cdiv(call.rows, TILE)
    p_sums = floats(call.batch, call.heads, row_tiles, 1)
    query_sums = floats(parts, call.heads, row_tiles, 2)
    key_sums = floats(call.batch, call.heads, triton.cdiv(call.columns, TILE), 4)
    terms = floats(shape if of_bias else (1,))
    if q.numel() > 0:
        moments = floats(call.batch, call.heads, call.rows, 3)
        given = gradient.to(q.dtype).contiguous()
        with on_device_of(q):
            attention_moments_kernel[(call.batch * call.programs(call.rows),)](
                *call.operands, given, *call.before, moments, p_sums, *call.sizes,
                **call.options,
            )  # fmt: skip
            attention_query_gradient_kernel[(parts * call.programs(call.rows),)](
                *call.operands, given, results[0], *call.before, moments, query_sums, terms,
                call.batch, size, *call.sizes, OF_BIAS=of_bias, **call.options,
            )  # fmt: skip
            attention_key_gradient_kernel[(call.batch * call.programs(call.columns),)](
                *call.operands, given, *results[1:], *call.before, moments, key_sums,
                *call.sizes, **call.options,
            )  # fmt: skip
    else:
        for x in (query_sums, key_sums, p_sums, *results, terms):
            x.zero_()
    sums = query_sums, key_sums, p_sums
    of_grids = _grids(call, grids, gradient_scales, sums)
    laid = [restored(y, x) for y, x in zip(results, (q, k, v), strict=True)]
    return *laid, *of_grids, terms.sum(0) if of_bias else floats(0)


def _grids(
    call: _Call,
    grids: Sequence[torch.Tensor],
    gradient_scales: Sequence[float],
    sums: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Adds up, in float64, what programs left of scales and zero points, and scales it."""
    totals = [total for one in sums for total in one.double().sum((0, 2)).unbind(-1)]
    results = []
    for place, (given, total) in enumerate(zip(grids, totals, strict=True)):
        scale = call.grids[place // 2 * 2].double()
        if place < 6 or not call.log2:
            total = total / (scale * scale if place % 2 == 0 else scale)
        value = total * gradient_scales[place // 2]
        whole = value.sum() if given.numel() == 1 else value
        results.append(whole.float().reshape(given.shape))
    return results
