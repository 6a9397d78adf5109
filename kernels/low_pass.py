"""Low-pass filters: a Gaussian as two products with circulant matrices, the rest by transforms."""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from synq_fast import reference
from synq_fast.kernels._layout import (
    INTERPRETED,
    PlaneLayout,
    finished,
    on_device_of,
    output_like,
    plane_layout,
    power_of_two,
)
from synq_fast.runtime.precision import matmul_uses_tensor_float32

LONGEST_SIDE = 1024  # beyond it transforms take fewer operations
LINES = 32
ROWS = 32
DEPTH = 16
# What lies between the passes over a chunk, as in csrc/cuda/low_pass.cu: it stays in an H100's
# second-level cache. No bit of a result depends on it.
CHUNK_BYTES = 38 << 20


@triton.jit
def axis_kernel(
    x_ptr, y_ptr, matrix_ptr, lines, inner, n,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LINES: tl.constexpr, PRECISION: tl.constexpr,
    BACKWARDS: tl.constexpr, READ: tl.constexpr, WRITTEN: tl.constexpr,
):  # fmt: skip
    """Memory is (outer, n, inner); y = matrix * x along the middle, LINES lines in a program.

    A line's values lie `inner` apart. Programs of the same lines follow each other, so that what
    one reads is in cache for the next. BACKWARDS: from the last line on. READ and WRITTEN say what
    leaves the cache first.
    """
    program = tl.program_id(0).to(tl.int64)
    if BACKWARDS:
        program = tl.num_programs(0) - 1 - program
    blocks = tl.cdiv(n, ROWS)
    row = (program % blocks) * ROWS + tl.arange(0, ROWS)
    line = (program // blocks) * LINES + tl.arange(0, LINES)
    start = (line // inner) * inner * n + line % inner
    in_lines = (line < lines)[None, :]
    sums = tl.zeros((ROWS, LINES), tl.float32)
    first = 0
    while first < n:  # the interpreter cannot run `range` over tensors with every NumPy
        k = first + tl.arange(0, DEPTH)
        in_matrix = (row < n)[:, None] & (k < n)[None, :]
        factors = tl.load(matrix_ptr + row[:, None] * n + k[None, :], mask=in_matrix, other=0.0)
        values = tl.load(
            x_ptr + start[None, :] + k[:, None] * inner,
            mask=in_lines & (k < n)[:, None],
            other=0.0,
            eviction_policy=READ,
        ).to(tl.float32)
        sums = tl.dot(factors, values, sums, input_precision=PRECISION)
        first += DEPTH
    tl.store(
        y_ptr + start[None, :] + row[:, None] * inner,
        sums.to(y_ptr.dtype.element_ty),
        mask=in_lines & (row < n)[:, None],
        eviction_policy=WRITTEN,
    )


def build_matrix(n: int, cutoff: float, device: torch.device) -> torch.Tensor:
    """Returns the circulant matrix (n, n) that applies the Gaussian along one side, float32."""
    index = torch.arange(n, dtype=torch.float64, device=device)
    frequency = torch.minimum(index, n - index)
    gain = torch.exp(-frequency.square() / (2 * cutoff**2))
    # By hand: transforms may not be captured in a CUDA graph when they are first used.
    waves = torch.cos(2 * torch.pi / n * ((index[:, None] * index) % n))
    taps = (gain * waves).sum(1) / n
    distance = (index[:, None] - index).remainder(n).long()
    return taps[distance].float().contiguous()


@lru_cache(maxsize=32)
def _stored_matrix(n: int, cutoff: float, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        # The copy waits for the device once: after it every stream may use the matrix.
        return build_matrix(n, cutoff, torch.device("cpu")).to(device)


def matrix_of(n: int, cutoff: float, device: torch.device) -> torch.Tensor:
    """Returns `build_matrix` from a bounded cache, or, while a CUDA graph is captured, afresh."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return build_matrix(n, cutoff, device)
    return _stored_matrix(n, cutoff, device)


def filter_axis(
    x: torch.Tensor, y: torch.Tensor, n: int, inner: int, matrix: torch.Tensor, *, last: bool
) -> None:
    """Writes the filtered `x`, in memory (outer, n, inner), to `y`; the `last` pass or the first.

    The last one begins with what the first wrote last.
    """
    rows = min(ROWS, max(16, power_of_two(n)))
    lines = x.numel() // n
    precision = "tf32" if matmul_uses_tensor_float32() else "tf32x3"
    axis_kernel[(triton.cdiv(lines, LINES) * triton.cdiv(n, rows),)](
        x, y, matrix, lines, inner, n, ROWS=rows, DEPTH=min(DEPTH, rows), LINES=LINES,
        PRECISION="ieee" if INTERPRETED else precision, BACKWARDS=last,
        READ="" if last else "evict_first", WRITTEN="evict_first" if last else "", num_warps=4,
    )  # fmt: skip


def filter_chunks(x: torch.Tensor, y: torch.Tensor, images: PlaneLayout, cutoff: float) -> None:
    """Writes the filtered `x` to `y`, which is laid out alike."""
    planes, height, width, step = images
    size = height * width * step
    fitting = max(CHUNK_BYTES // (4 * size), 1)
    chunk = size * triton.cdiv(planes, triton.cdiv(planes, fitting))
    middle = x.new_empty(chunk, dtype=torch.float32)
    by_height, by_width = (matrix_of(n, cutoff, x.device) for n in (height, width))
    source, target = (value.as_strided((value.numel(),), (1,)) for value in (x, y))
    with on_device_of(x):
        for values, results in zip(source.split(chunk), target.split(chunk), strict=True):
            between = middle[: values.numel()]
            filter_axis(values, between, height, width * step, by_height, last=False)
            filter_axis(between, results, width, step, by_width, last=True)


def low_pass(
    x: torch.Tensor, cutoff: float, kind: str, order: int, method: str = "auto"
) -> torch.Tensor:
    """Returns the filtered images; channels_last ones stay so, others become contiguous."""
    height, width = x.shape[-2:]
    by_matrix = kind == "gaussian" and max(height, width) <= LONGEST_SIDE
    if method == "matrix" and not by_matrix:
        raise ValueError(
            "low_pass: the Triton kernels' method matrix is for the kind gaussian and sides up to "
            f"{LONGEST_SIDE}, got {kind} and {height} x {width}"
        )
    x, images = plane_layout(x)
    if not by_matrix or method == "spectrum":
        filtered = reference.low_pass(x, cutoff, kind=kind, order=order)
        return torch.empty_like(x).copy_(filtered)
    y = output_like(x)
    if x.numel() > 0:
        filter_chunks(x, y, images, cutoff)
    return finished(y, x)
