"""Similarity of the heads of attention, and its gradient, a query's heads at a time.

A program handles one query: its rows are read for their ends, for their means, for the covariances
and, backward, for the gradient, from the second time on out of a cache. Products are in full
float32. With A = 2 m_h m_g + C1, B = 2 c + C2, C = m_h^2 + m_g^2 + C1 and D = v_h + v_g + C2:

    S = A B / (C D)
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._heads import finished_heads, heads_of, output_of_heads
from synq_fast.kernels._layout import on_device_of, power_of_two

C1, C2, LEAST_RANGE = 1e-4, 9e-4, 1e-8
LEAST_HEADS = 16  # that a product of tiles takes
KEYS = 32  # operands of products are in registers, with all keys of a tile
MOST_FACTORS = 32  # heads whose factors are the operand of a product


@triton.jit
def load_rows(rows_ptr, head, head_step, key, heads, keys):
    """Returns some keys of all rows, and which of them there are."""
    inside = (head < heads)[:, None] & (key < keys)[None, :]
    x = tl.load(rows_ptr + (head * head_step)[:, None] + key[None, :], mask=inside, other=0.0)
    return x.to(tl.float32), inside


@triton.jit
def query_statistics(
    rows_ptr, head, head_step, heads, keys, zero, least_range,
    HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Returns least values, inverse ranges and means of the scaled rows, and greatest values."""
    low = tl.full((HEADS, KEYS), float("inf"), tl.float32)
    high = tl.full((HEADS, KEYS), float("-inf"), tl.float32)
    start = zero
    while start < keys:
        x, inside = load_rows(rows_ptr, head, head_step, start + tl.arange(0, KEYS), heads, keys)
        # NaN is passed over: it meets the mean.
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
        start += KEYS
    low = tl.min(low, 1)
    high = tl.max(high, 1)
    low = tl.where(head < heads, low, 0.0)
    high = tl.where(head < heads, high, 0.0)
    inverse = 1.0 / (high - low + least_range)
    total = tl.zeros((HEADS, KEYS), tl.float32)
    start = zero
    while start < keys:
        x, inside = load_rows(rows_ptr, head, head_step, start + tl.arange(0, KEYS), heads, keys)
        total += tl.where(inside, (x - low[:, None]) * inverse[:, None], 0.0)
        start += KEYS
    return low, high, inverse, tl.sum(total, 1) / keys


@triton.jit
def centred_rows(rows_ptr, head, head_step, key, heads, keys, low, inverse, mean):
    """Returns some keys of all rows, scaled to 0..1, less their means."""
    x, inside = load_rows(rows_ptr, head, head_step, key, heads, keys)
    return tl.where(inside, (x - low[:, None]) * inverse[:, None] - mean[:, None], 0.0)


@triton.jit
def query_covariances(
    rows_ptr, head, head_step, heads, keys, zero, low, inverse, mean,
    HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Returns the covariances of all pairs of heads."""
    covariance = tl.zeros((HEADS, HEADS), tl.float32)
    start = zero
    while start < keys:
        key = start + tl.arange(0, KEYS)
        x = centred_rows(rows_ptr, head, head_step, key, heads, keys, low, inverse, mean)
        covariance = tl.dot(x, tl.trans(x), covariance, input_precision="ieee")
        start += KEYS
    return covariance / keys


@triton.jit
def pair_similarities(covariance, mean, same, c1, c2):
    """Returns A, C, D and S of all pairs."""
    variance = tl.sum(tl.where(same, covariance, 0.0), 1)
    other_variance = tl.sum(tl.where(same, covariance, 0.0), 0)
    one = mean[:, None]
    other = mean[None, :]
    a = 2.0 * one * other + c1
    c = one * one + other * other + c1
    d = variance[:, None] + other_variance[None, :] + c2
    return a, c, d, a * (2.0 * covariance + c2) / (c * d)


@triton.jit
def value_of(values, it):
    """Returns the one of the values that a mask chooses."""
    return tl.sum(tl.where(it, values, 0.0), 0)


@triton.jit
def head_pairs_kernel(
    logits_ptr, partial_ptr, heads, queries, keys, batch_step, head_step, row_step,
    c1, c2, least_range, HEADS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes the sum of 1 - S^2 over a query's pairs."""
    program = tl.program_id(0).to(tl.int64)
    rows_ptr = logits_ptr + program // queries * batch_step + program % queries * row_step
    head = tl.arange(0, HEADS).to(tl.int64)
    zero = program * 0  # the interpreter cannot run `range` over tensors with every NumPy
    low, _, inverse, mean = query_statistics(
        rows_ptr, head, head_step, heads, keys, zero, least_range, HEADS, KEYS
    )
    covariance = query_covariances(
        rows_ptr, head, head_step, heads, keys, zero, low, inverse, mean, HEADS, KEYS
    )
    same = head[:, None] == head[None, :]
    _, _, _, s = pair_similarities(covariance, mean, same, c1, c2)
    inside = (head < heads)[:, None] & (head < heads)[None, :]
    tl.store(partial_ptr + program, tl.sum(tl.sum(tl.where(inside, 1.0 - s * s, 0.0), 1), 0))


@triton.jit
def head_gradient_kernel(
    grad_ptr, logits_ptr, result_ptr, heads, queries, keys, batch_step, head_step, row_step,
    y_batch, y_head, y_row, share, c1, c2, least_range, HEADS: tl.constexpr, KEYS: tl.constexpr,
    FACTORS_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a query's logits; `share` is that of a pair in the loss."""
    program = tl.program_id(0).to(tl.int64)
    batch = program // queries
    query = program % queries
    rows_ptr = logits_ptr + batch * batch_step + query * row_step
    head = tl.arange(0, HEADS).to(tl.int64)
    zero = program * 0
    low, high, inverse, mean = query_statistics(
        rows_ptr, head, head_step, heads, keys, zero, least_range, HEADS, KEYS
    )
    covariance = query_covariances(
        rows_ptr, head, head_step, heads, keys, zero, low, inverse, mean, HEADS, KEYS
    )
    same = head[:, None] == head[None, :]
    a, c, d, s = pair_similarities(covariance, mean, same, c1, c2)
    inside = (head < heads)[:, None] & (head < heads)[None, :]
    slope = tl.where(inside, -2.0 * s * (tl.load(grad_ptr) * share), 0.0)
    # The gradient of a scaled row is offset / keys + the sum over heads of factors times rows.
    offset = 4.0 * tl.sum(slope * s * (mean[None, :] / a - mean[:, None] / c), 1)
    of_variance = -4.0 * tl.sum(slope * s / d, 1)
    factors = 4.0 * slope * a / (c * d) + tl.where(same, of_variance[:, None], 0.0)
    of_high = offset * mean + tl.sum(factors * covariance, 1)

    # The first places of the ends.
    low_place = tl.zeros((HEADS,), tl.int64) + keys
    high_place = tl.zeros((HEADS,), tl.int64) + keys
    start = zero
    while start < keys:
        key = start + tl.arange(0, KEYS)
        x, there = load_rows(rows_ptr, head, head_step, key, heads, keys)
        place = tl.zeros((HEADS, KEYS), tl.int64) + key[None, :]
        found = tl.where(there & (x == low[:, None]), place, keys)
        low_place = tl.minimum(low_place, tl.min(found, 1))
        found = tl.where(there & (x == high[:, None]), place, keys)
        high_place = tl.minimum(high_place, tl.min(found, 1))
        start += KEYS

    target = result_ptr + batch * y_batch + query * y_row
    start = zero
    while start < keys:
        key = start + tl.arange(0, KEYS)
        if FACTORS_AT_ONCE:
            x = centred_rows(rows_ptr, head, head_step, key, heads, keys, low, inverse, mean)
            y = tl.dot(factors, x, input_precision="ieee")
        else:
            y = tl.zeros((HEADS, KEYS), tl.float32)
            other = zero
            while other < heads:
                # What is known of one head.
                it = head == other
                x = tl.load(rows_ptr + other * head_step + key, mask=key < keys, other=0.0)
                x = (x.to(tl.float32) - value_of(low, it)) * value_of(inverse, it)
                x -= value_of(mean, it)
                y += tl.sum(tl.where(it[None, :], factors, 0.0), 1)[:, None] * x[None, :]
                other += 1
        y = (y + offset[:, None]) / keys
        y -= tl.where(key[None, :] == high_place[:, None], of_high[:, None], 0.0)
        y -= tl.where(key[None, :] == low_place[:, None], (offset - of_high)[:, None], 0.0)
        y *= inverse[:, None]
        there = (head < heads)[:, None] & (key < keys)[None, :]
        tl.store(
            target + (head * y_head)[:, None] + key[None, :],
            y.to(result_ptr.dtype.element_ty),
            mask=there,
        )
        start += KEYS


def _tile(heads: int) -> dict[str, int]:
    """Returns the sides of a tile, and the warps that hold it."""
    rows = max(power_of_two(heads), LEAST_HEADS)
    # With eight warps Blackwell's tensor cores would take 64 heads, and float32 cut to TF32.
    return {"HEADS": rows, "KEYS": KEYS, "num_warps": rows // 8 if rows < 64 else 16}


def inter_head_similarity_loss(logits: torch.Tensor) -> torch.Tensor:
    """Returns the loss of (B, H, N, M)."""
    batch, heads, queries, keys = logits.shape
    partial = torch.empty(batch * queries, dtype=torch.float32, device=logits.device)
    if partial.numel() == 0:
        return partial.new_zeros(())
    logits = heads_of(logits)
    with on_device_of(logits):
        head_pairs_kernel[(batch * queries,)](
            logits, partial, heads, queries, keys, *logits.stride()[:3],
            C1, C2, LEAST_RANGE, **_tile(heads),
        )  # fmt: skip
    return (partial.sum(dtype=torch.float64) / (batch * queries * heads * heads)).float()


def inter_head_similarity_loss_backward(grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of `logits`, laid out as `logits`."""
    y = output_of_heads(logits)
    if logits.numel() == 0:
        return finished_heads(y, logits)
    batch, heads, queries, keys = logits.shape
    x = heads_of(logits)
    with on_device_of(x):
        head_gradient_kernel[(batch * queries,)](
            grad.float(), x, y, heads, queries, keys, *x.stride()[:3], *y.stride()[:3],
            1 / (batch * queries * heads * heads), C1, C2, LEAST_RANGE,
            FACTORS_AT_ONCE=heads <= MOST_FACTORS, **_tile(heads),
        )  # fmt: skip
    return finished_heads(y, logits)
