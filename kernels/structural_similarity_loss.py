"""Similarity of the channels of a student's and a teacher's heads, and the student's gradient."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._heads import finished_heads, heads_of, output_of_heads
from synq_fast.kernels._layout import on_device_of, power_of_two

C2 = 9e-4
CHANNELS = 32  # of a head, side by side
TILE = 2048


@triton.jit
def weight_at(weight_ptr, step, position, inside, WEIGHTED: tl.constexpr):
    """Returns the weights of positions as a column, zeros beyond the last."""
    if WEIGHTED:
        return tl.load(weight_ptr + position * step, mask=inside, other=0.0)
    else:
        return tl.where(inside, 1.0, 0.0)


@triton.jit
def similarity_statistics_kernel(
    teacher_ptr, student_ptr, weight_ptr, statistics_ptr, partial_ptr,
    heads, positions, channels, tiles,
    t_batch, t_head, t_row, q_batch, q_head, q_row, w_batch, w_head, w_row, offset, share,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (matrix, tile of channels) writes their statistics and the sum of similarities."""
    program = tl.program_id(0).to(tl.int64)
    matrix = program // tiles
    batch = matrix // heads
    head = matrix % heads
    teacher_ptr += batch * t_batch + head * t_head
    student_ptr += batch * q_batch + head * q_head
    weight_ptr += batch * w_batch + head * w_head
    row = tl.arange(0, ROWS)[:, None]
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    columns = column[None, :]
    inside = column < channels

    weights = tl.zeros((ROWS, 1), tl.float32)
    of_t = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_q = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = program * 0  # the interpreter cannot run `range` over tensors with every NumPy
    while start < positions:
        position = start + row
        valid = position < positions
        mask = valid & inside[None, :]
        weight = weight_at(weight_ptr, w_row, position, valid, WEIGHTED)
        t = tl.load(teacher_ptr + position * t_row + columns, mask=mask, other=0.0)
        q = tl.load(student_ptr + position * q_row + columns, mask=mask, other=0.0)
        weights += weight
        of_t += weight * t.to(tl.float32)
        of_q += weight * q.to(tl.float32)
        start += ROWS
    inverse = 1.0 / tl.sum(tl.sum(weights, 1), 0)
    mean_t = tl.sum(of_t, 0) * inverse
    mean_q = tl.sum(of_q, 0) * inverse

    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = program * 0
    while start < positions:
        position = start + row
        valid = position < positions
        mask = valid & inside[None, :]
        weight = weight_at(weight_ptr, w_row, position, valid, WEIGHTED)
        t = tl.load(teacher_ptr + position * t_row + columns, mask=mask, other=0.0)
        q = tl.load(student_ptr + position * q_row + columns, mask=mask, other=0.0)
        t = tl.where(mask, t.to(tl.float32) - mean_t[None, :], 0.0)
        q = tl.where(mask, q.to(tl.float32) - mean_q[None, :], 0.0)
        squares += weight * (t * t + q * q)
        products += weight * (t * q)
        start += ROWS
    deviations = tl.sum(squares, 0) * inverse + offset
    similarity = (2.0 * (tl.sum(products, 0) * inverse) + offset) / deviations
    target = statistics_ptr + matrix * 4 * channels + column
    tl.store(target, mean_t, mask=inside)
    tl.store(target + channels, mean_q, mask=inside)
    tl.store(target + 2 * channels, similarity, mask=inside)
    tl.store(target + 3 * channels, share * inverse / deviations, mask=inside)
    tl.store(partial_ptr + program, tl.sum(tl.where(inside, similarity, 0.0), 0))


@triton.jit
def similarity_gradient_kernel(
    grad_ptr, teacher_ptr, student_ptr, weight_ptr, statistics_ptr, result_ptr,
    heads, positions, channels, row_tiles, tiles,
    t_batch, t_head, t_row, q_batch, q_head, q_row, w_batch, w_head, w_row, y_batch, y_head, y_row,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (matrix, tile of positions, tile of channels)."""
    program = tl.program_id(0).to(tl.int64)
    tile = program // tiles
    matrix = tile // row_tiles
    batch = matrix // heads
    head = matrix % heads
    position = ((tile % row_tiles) * ROWS + tl.arange(0, ROWS))[:, None]
    column = ((program % tiles) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    valid = position < positions
    mask = valid & (column < channels)
    of = statistics_ptr + matrix * 4 * channels + column
    inside = column < channels
    teacher_ptr += batch * t_batch + head * t_head
    student_ptr += batch * q_batch + head * q_head
    weight_ptr += batch * w_batch + head * w_head
    weight = weight_at(weight_ptr, w_row, position, valid, WEIGHTED)
    t = tl.load(teacher_ptr + position * t_row + column, mask=mask, other=0.0).to(tl.float32)
    q = tl.load(student_ptr + position * q_row + column, mask=mask, other=0.0).to(tl.float32)
    t -= tl.load(of, mask=inside, other=0.0)
    q -= tl.load(of + channels, mask=inside, other=0.0)
    similarity = tl.load(of + 2 * channels, mask=inside, other=0.0)
    slope = tl.load(of + 3 * channels, mask=inside, other=0.0) * (tl.load(grad_ptr) * weight)
    y = slope * (similarity * q - t)
    target = result_ptr + batch * y_batch + head * y_head + position * y_row + column
    tl.store(target, y.to(result_ptr.dtype.element_ty), mask=mask)


def _sides(positions: int, channels: int, elements: int) -> tuple[int, int]:
    """Returns positions and channels of a tile."""
    columns = min(power_of_two(channels), CHANNELS)
    return min(power_of_two(positions), elements // columns), columns


def _weights(weight: torch.Tensor | None, student: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns memory, and where the weight of a position lies in it."""
    if weight is None:
        return student, (0, 0, 0)  # a pointer that is not read
    weight = weight.float().expand(student.shape[:-1])
    return weight, weight.stride()


def structural_similarity_loss(
    teacher: torch.Tensor, student: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss and the statistics, (B, H, 4, d)."""
    batch, heads, positions, channels = student.shape
    statistics = torch.empty(
        (batch, heads, 4, channels), dtype=torch.float32, device=student.device
    )
    similarities = batch * heads * channels
    if similarities == 0:
        return statistics.new_zeros(()), statistics
    teacher, student = heads_of(teacher), heads_of(student)
    memory, steps = _weights(weight, student)
    rows, columns = _sides(positions, channels, TILE)
    tiles = triton.cdiv(channels, columns)
    partial = statistics.new_empty(batch * heads * tiles)
    with on_device_of(student):
        similarity_statistics_kernel[(batch * heads * tiles,)](
            teacher, student, memory, statistics, partial, heads, positions, channels, tiles,
            *teacher.stride()[:3], *student.stride()[:3], *steps, C2, 2 / similarities,
            WEIGHTED=weight is not None, ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return (1 - partial.sum(dtype=torch.float64) / similarities).float(), statistics


def structural_similarity_loss_backward(
    grad: torch.Tensor,
    teacher: torch.Tensor,
    student: torch.Tensor,
    weight: torch.Tensor | None,
    statistics: torch.Tensor,
) -> torch.Tensor:
    """Returns the gradient of `student`, laid out as `student`."""
    given = student
    y = output_of_heads(given)
    if given.numel() == 0:
        return finished_heads(y, given)
    batch, heads, positions, channels = student.shape
    teacher, student = heads_of(teacher), heads_of(student)
    memory, steps = _weights(weight, student)
    elements, warps = block_shape("similarity_gradient_kernel", student.dtype)
    rows, columns = _sides(positions, channels, elements)
    row_tiles, tiles = triton.cdiv(positions, rows), triton.cdiv(channels, columns)
    with on_device_of(student):
        similarity_gradient_kernel[(batch * heads * row_tiles * tiles,)](
            grad.float(), teacher, student, memory, statistics.contiguous(), y,
            heads, positions, channels, row_tiles, tiles,
            *teacher.stride()[:3], *student.stride()[:3], *steps, *y.stride()[:3],
            WEIGHTED=weight is not None, ROWS=rows, COLUMNS=columns, num_warps=warps,
        )  # fmt: skip
    return finished_heads(y, given)
