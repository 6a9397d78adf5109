"""Codes of int8 for products of integers, by the frozen network's rounding."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layout import INTERPRETED, dense, on_device_of

BLOCK = 1024
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def _fused(a, b, c):
    """Returns a * b + c, rounded once; the interpreter's own rounds twice."""
    if _INTERPRETED:
        return (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    return tl.fma(a, b, c)


@triton.jit
def code_of(value, scale, inverse, least, most, offset):
    """Returns the code of a value, of no NaN, by the steps of `steps_of`.

    The quotient is the correctly rounded one that frozen networks have: two corrections by the
    exact remainder give it where the inverse is correctly rounded (Markstein 1990). A division
    would be half of a product's instructions. The magic constant rounds half to even and leaves the
    number in the last bits.
    """
    value = tl.clamp(value, least, most)
    scale = tl.zeros_like(value) - scale
    inverse = tl.zeros_like(value) + inverse
    number = value * inverse
    number = _fused(_fused(number, scale, value), inverse, number)
    number = _fused(_fused(number, scale, value), inverse, number) + 12582912.0
    return (number.to(tl.int32, bitcast=True) - offset).to(tl.int8)


def steps_of(grid: tuple[float, int, int, int]) -> tuple[float, float, float, float, int]:
    """Returns scale, inverse, the values a quarter beyond the ends, and what codes leave out.

    A grid is scale, lowest and highest number, and that.
    """
    scale, low, high, offset = grid
    return scale, 1 / scale, (low - 0.25) * scale, (high + 0.25) * scale, offset


@triton.jit
def codes_kernel(
    x_ptr, y_ptr, size, scale, inverse, least, most, offset, BLOCK: tl.constexpr
):  # fmt: skip
    """Program: a block of values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(x != x, 0.0, x)
    tl.store(y_ptr + place, code_of(x, scale, inverse, least, most, offset), mask=inside)


def int8_codes(x: torch.Tensor, grid: tuple[float, int, int, int]) -> torch.Tensor:
    """Returns codes in the layout of `x`: whole numbers of steps less an offset, NaN as 0."""
    x, _ = dense(x, None)
    codes = torch.empty_like(x, dtype=torch.int8)
    if x.numel() > 0:
        with on_device_of(x):
            codes_kernel[(triton.cdiv(x.numel(), BLOCK),)](
                x, codes, x.numel(), *steps_of(grid), BLOCK=BLOCK, num_warps=4,
                enable_fp_fusion=False,
            )  # fmt: skip
    return codes
