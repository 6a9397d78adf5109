"""The search for the range with the least quantization error, all candidates in one pass."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, make_affine, quantize
from synq_fast.kernels._extrema import Partials, partial_ranges, reduce_range
from synq_fast.kernels._layout import Layout, dense, on_device_of, power_of_two
from synq_fast.kernels.fake_quantize_dynamic import find_range

BLOCK = 2048
MAXIMUM_PROGRAMS = 1024
LARGEST_POWER = 64.0


@triton.jit
def shrunk(bound, index):
    """Returns a bound of candidate `index`: `(1 - 0.01 index)`, correctly rounded, times it."""
    percent = (100 - index).to(tl.float32)
    return bound * tl.div_rn(percent, tl.full(percent.shape, 100.0, tl.float32))


@triton.jit
def power_offset(range_min, range_max, scale, norm, largest_power):
    """Returns the binary logarithm of the unit of errors to the power `norm`.

    The unit is a step of the first candidate, or more where the power of `4 max |x|`, beyond any
    error, would leave no room in float32 for sums.
    """
    largest = tl.maximum(tl.abs(range_min), tl.abs(range_max))
    offset = norm * tl.log2(scale)
    excess = norm * (tl.log2(largest) + 2.0) + offset - largest_power
    return tl.where(excess > 0.0, offset - excess, offset)


@triton.jit
def errors_kernel(
    x_ptr, low_ptr, high_ptr, count, sums_ptr, elements, inner, row, programs, candidates, norm,
    levels, half, largest_power, COUNT: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up every candidate's errors over every `programs`-th block of a channel.

    Sums are (channels, candidates, programs). A channel of `elements` lies TOGETHER, or in pieces
    of `inner` elements that are `row` elements apart, below 2^31 in all.
    """
    channel = tl.program_id(0).to(tl.int64) // programs
    program = tl.program_id(0).to(tl.int64) % programs
    sums_ptr += channel * candidates * programs + program
    x_ptr += channel * (elements if TOGETHER else inner)
    range_min, range_max = reduce_range(
        low_ptr + channel * count, high_ptr + channel * count, count, COUNT
    )
    scale, _ = make_affine(range_min, range_max, levels, half)
    offset = power_offset(range_min, range_max, scale, norm, largest_power)
    start = program * BLOCK
    while start < elements:
        lane = tl.arange(0, BLOCK)
        # Of 32 bits, as everything that is kept while the candidates go by.
        left = tl.minimum(elements - start, BLOCK).to(tl.int32)
        if TOGETHER:
            place = start + lane
            mask = place < elements
        else:
            mask = lane < left
            short = start.to(tl.int32) + lane
            piece = short // inner
            place = piece.to(tl.int64) * row + (short - piece * inner)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        candidate = tl.full((), 0, tl.int32)
        while candidate < candidates:
            low, high = shrunk(range_min, candidate), shrunk(range_max, candidate)
            scale, zero_point = make_affine(low, high, levels, half)
            code = quantize(x, scale, zero_point, -half, half - 1.0)
            error = tl.abs(dequantize(code, scale, zero_point) - x)
            power = tl.exp2(norm * tl.log2(error) + offset)
            place_of_sum = sums_ptr + candidate * programs
            # Each program returns to its own sums: nothing else touches them, the order is fixed.
            before = tl.load(place_of_sum, mask=start >= programs * BLOCK, other=0.0)
            tl.store(
                place_of_sum, before + tl.sum(tl.where(lane < left, power, 0.0), 0).to(tl.float64)
            )
            candidate += 1
        start += programs * BLOCK


@triton.jit
def total_kernel(sums_ptr, totals_ptr, programs, PROGRAMS: tl.constexpr):
    """Adds up the sums of one candidate of one channel."""
    candidate = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PROGRAMS)
    sums = tl.load(sums_ptr + candidate * programs + index, mask=index < programs, other=0.0)
    tl.store(totals_ptr + candidate, tl.sum(sums, 0))


@triton.jit
def choose_kernel(
    totals_ptr, low_ptr, high_ptr, count, min_ptr, max_ptr, candidates, levels, half,
    COUNT: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Writes the range of a channel's first candidate with the least total.

    A range that is not finite, or whose scale or zero point overflows, makes no errors that are
    numbers: the first candidate wins, as it does by its NaN score in the reference.
    """
    channel = tl.program_id(0).to(tl.int64)
    range_min, range_max = reduce_range(
        low_ptr + channel * count, high_ptr + channel * count, count, COUNT
    )
    scale, zero_point = make_affine(range_min, range_max, levels, half)
    infinity = float("inf")
    finite = (scale > 0.0) & (scale < infinity) & (tl.abs(zero_point) < infinity)
    index = tl.arange(0, CANDIDATES)
    totals = tl.load(
        totals_ptr + channel * candidates + index, mask=index < candidates, other=infinity
    )
    best = tl.where(finite, tl.argmin(totals, 0), 0)
    tl.store(min_ptr + channel, shrunk(range_min, best))
    tl.store(max_ptr + channel, shrunk(range_max, best))


def channel_ranges(x: torch.Tensor, layout: Layout) -> Partials:
    """Returns the range of each channel, or of all as partial ranges."""
    if layout.channels == 1:
        return partial_ranges(x)
    low, high = torch.empty((2, layout.channels), dtype=torch.float32, device=x.device)
    find_range(x, low, high, layout, False)
    return Partials(low, high, 1)


def search_range(
    x: torch.Tensor, bits: int, candidates: int, norm: float, axis: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the ranges of the candidates with the least errors, float32; `x` is not empty.

    They are 0-d, or (channels,) with `axis`.
    """
    shape = () if axis is None else (x.shape[axis],)
    x, layout = dense(x.detach(), axis)
    if axis is not None and layout.outer > 1 and layout.outer * layout.inner >= 2**31:
        # The kernel counts the elements of channels in pieces in 32 bits.
        x, layout = dense(x.movedim(axis, 0).contiguous(), 0)
    outer, channels, inner = layout
    elements = outer * inner
    programs = min(triton.cdiv(elements, BLOCK), MAXIMUM_PROGRAMS)
    range_min = torch.empty(shape, dtype=torch.float32, device=x.device)
    range_max = torch.empty_like(range_min)
    sums = torch.empty((channels, candidates, programs), dtype=torch.float64, device=x.device)
    totals = torch.empty((channels, candidates), dtype=torch.float64, device=x.device)
    levels, half = float(2**bits - 1), float(2 ** (bits - 1))
    with on_device_of(x):
        partials = channel_ranges(x, layout)
        errors_kernel[(channels * programs,)](
            x, *partials, sums, elements, inner, channels * inner, programs, candidates, norm,
            levels, half, LARGEST_POWER,
            COUNT=partials.padded, TOGETHER=outer == 1, BLOCK=BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        total_kernel[(channels * candidates,)](
            sums, totals, programs, PROGRAMS=power_of_two(programs), num_warps=4
        )
        choose_kernel[(channels,)](
            totals, *partials, range_min, range_max, candidates, levels, half,
            COUNT=partials.padded, CANDIDATES=power_of_two(candidates),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return range_min, range_max
