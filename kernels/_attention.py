"""What the kernels of attention on quantized operands share: tiles of codes, logits, slopes."""

import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, learned_grid, quantize
from synq_fast.kernels._channel_sums import learned_terms
from synq_fast.kernels._probabilities import probability_terms


@triton.jit
def read_rows(x_ptr, first, count, width, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Returns a tile of rows in float32, which elements are there, and where."""
    row = first + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH)
    inside = (row < count)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    return tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32), inside, place


@triton.jit
def incoming(x_ptr, first, count, width, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Returns a tile of rows in float32, zeros beside and below them."""
    x, _, _ = read_rows(x_ptr, first, count, width, TILE, WIDTH)
    return x


@triton.jit
def read_codes(
    x_ptr, first, count, width, scale, zero_point, half, TILE: tl.constexpr, WIDTH: tl.constexpr
):
    """Returns the codes of a tile, counted from that of zero; zeros beside and below them."""
    x, inside, _ = read_rows(x_ptr, first, count, width, TILE, WIDTH)
    code = quantize(x, scale, zero_point, -half, half - 1.0) + zero_point
    return tl.where(inside, code, 0.0)


@triton.jit
def grid_of(grids_ptr, place, head, heads):
    """Returns scale and zero point of an operand; pairs are (operand, 2, head)."""
    start = grids_ptr + place * 2 * heads + head
    return learned_grid(tl.load(start), tl.load(start + heads))


@triton.jit
def grids_of(grids_ptr, head, heads, alpha):
    """Returns scales and zero points of q, k and v, the scale of probabilities, and a factor.

    The factor makes logits of products of codes.
    """
    q_scale, q_zero = grid_of(grids_ptr, 0, head, heads)
    k_scale, k_zero = grid_of(grids_ptr, 1, head, heads)
    v_scale, v_zero = grid_of(grids_ptr, 2, head, heads)
    p_scale = tl.load(grids_ptr + 6 * heads + head)
    factor = tl.div_rn(alpha + q_scale * 0.0, q_scale * k_scale)
    return q_scale, q_zero, k_scale, k_zero, v_scale, v_zero, p_scale, factor


@triton.jit
def kept_moments(moments_ptr, index, row, rows):
    """Returns what `attention_moments_kernel` kept of rows of an image's head: three numbers."""
    moments = moments_ptr + (index * rows + row) * 3
    most = tl.load(moments, mask=row < rows, other=0.0)
    inverse = tl.load(moments + 1, mask=row < rows, other=0.0)
    along = tl.load(moments + 2, mask=row < rows, other=0.0)
    return most, inverse, along


@triton.jit
def multiply(a, b):
    """Returns a b; each factor as a sum of parts that tensor cores multiply exactly."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def logits_of(
    products, factor, bias_ptr, mask_ptr, row, column, rows, columns,
    BIAS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Returns logits; minus infinity beyond the last key."""
    inside = (row < rows) & (column < columns)
    logits = products * factor
    if BIAS:
        logits += tl.load(bias_ptr + row * columns + column, mask=inside, other=0.0)
    if MASK:
        logits += tl.load(mask_ptr + row * columns + column, mask=inside, other=0.0)
    return tl.where(column < columns, logits, float("-inf"))


@triton.jit
def moments_of(
    q, k_ptr, bias_ptr, mask_ptr, first_row, zero, rows, columns, width, factor, scale, zero_point,
    half, BIAS: tl.constexpr, MASK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Returns the greatest logit of each query and the inverse of the sum of exponentials.

    `zero` is one of int64.
    """
    row = first_row + tl.arange(0, TILE)
    most = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.full((TILE,), 0.0, tl.float32)
    first = zero  # the interpreter cannot run `range` over tensors with every NumPy
    while first < columns:
        k = read_codes(k_ptr, first, columns, width, scale, zero_point, half, TILE, WIDTH)
        column = first + tl.arange(0, TILE)
        logits = logits_of(
            multiply(q, tl.trans(k)), factor, bias_ptr, mask_ptr, row[:, None], column[None, :],
            rows, columns, BIAS, MASK,
        )  # fmt: skip
        greatest = tl.maximum(most, tl.max(logits, 1))
        added = tl.sum(tl.exp(logits - greatest[:, None]), 1)
        # Nothing but minus infinities so far adds nothing.
        total = tl.where(greatest == float("-inf"), 0.0, total * tl.exp(most - greatest) + added)
        most = greatest
        first += TILE
    return most, tl.div_rn(tl.full((TILE,), 1.0, tl.float32), total)


@triton.jit
def finish_rows(
    x_ptr, y_ptr, first, count, width, gradient, scale, zero_point, half,
    TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of a tile through its grid; returns the sums of the grid's terms."""
    x, inside, place = read_rows(x_ptr, first, count, width, TILE, WIDTH)
    y, of_scale, of_zero = learned_terms(gradient, x, scale, zero_point, half)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
    of_scale = tl.where(inside, of_scale, 0.0)
    of_zero = tl.where(inside, of_zero, 0.0)
    return tl.sum(tl.sum(of_scale, 1), 0), tl.sum(tl.sum(of_zero, 1), 0)


@triton.jit
def slopes_of(
    logits, most, inverse, gradient, v, v_scale, p_scale, p_half, p_least, inside,
    LOG: tl.constexpr,
):  # fmt: skip
    """Returns probabilities, the gradients of them before rounding, and the scale's terms."""
    p = tl.where(inside, tl.exp(logits - most[:, None]) * inverse[:, None], 0.0)
    slope = dequantize(multiply(gradient, tl.trans(v)), v_scale, 0.0)
    slope, term = probability_terms(slope, p, p_scale, p_half, p_least, LOG)
    return p, tl.where(inside, slope, 0.0), tl.where(inside, term, 0.0)
