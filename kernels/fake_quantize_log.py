"""Fake quantization over a logarithmic grid, and its two gradients."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._channel_sums import MAXIMUM_SPLITS, finish_sums_kernel
from synq_fast.kernels._layout import (
    dense,
    finished,
    laid_out_as,
    on_device_of,
    output_like,
    power_of_two,
)

BLOCK = 1024
CARRY = 0x4AFB0C


@triton.jit
def log_level(ratio, least, CARRY: tl.constexpr):
    """Returns the power of two that a ratio rounds to, or zero; NaN stays."""
    word = tl.where(ratio < 1.0, ratio, 1.0).to(tl.int32, bitcast=True)
    power = ((word + CARRY) & 0x7F800000).to(tl.float32, bitcast=True)
    power = tl.where(word < least, 0.0, power)
    return tl.where(ratio != ratio, ratio, power)


@triton.jit
def log_kernel(x_ptr, y_ptr, scale_ptr, elements, least, CARRY: tl.constexpr, BLOCK: tl.constexpr):
    """A program handles BLOCK consecutive elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    scale = tl.full((BLOCK,), 0.0, tl.float32) + tl.load(scale_ptr)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        x = tl.load(x_ptr + offsets).to(tl.float32)
        y = scale * log_level(tl.div_rn(x, scale), least, CARRY)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))
    else:
        mask = offsets < elements
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        y = scale * log_level(tl.div_rn(x, scale), least, CARRY)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def log_gradient_kernel(
    x_ptr, gradient_ptr, y_ptr, first_ptr, second_ptr, scale_ptr, elements, splits, least,
    CARRY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program `split` handles every `splits`-th block."""
    split = tl.program_id(0).to(tl.int64)
    scale = tl.full((BLOCK,), 0.0, tl.float32) + tl.load(scale_ptr)
    sums = tl.full((BLOCK,), 0.0, tl.float32)
    start = split * BLOCK
    while start < elements:  # the interpreter cannot run `range` over tensors with every NumPy
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < elements
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        ratio = tl.div_rn(x, scale)
        level = log_level(ratio, least, CARRY)
        above = ratio > 1.0
        y = tl.where(above | (level == 0.0), 0.0, gradient * tl.div_rn(scale * level, x))
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        sums += tl.where(above & mask, gradient, 0.0)
        start += splits * BLOCK
    tl.store(first_ptr + split, tl.sum(sums, 0))
    tl.store(second_ptr + split, 0.0)


def _least_ratio(bits: int) -> int:
    return max(((127 - min(2**bits - 2, 126)) << 23) - CARRY, 1 << 23)


def fake_quantize_log(x: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns `x` rounded to powers of two times the scale, in the dtype and layout of `x`."""
    x, _ = dense(x, None)
    y = output_like(x)
    if x.numel() > 0:
        with on_device_of(x):
            log_kernel[(triton.cdiv(x.numel(), BLOCK),)](
                x, y, scale, x.numel(), _least_ratio(bits), CARRY=CARRY, BLOCK=BLOCK,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return finished(y, x)


def fake_quantize_log_backward(
    gradient: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x` and of the scale."""
    x, _ = dense(x, None)
    y = output_like(x)
    if x.numel() == 0:
        return y, torch.zeros_like(scale)
    of_scale = scale.new_empty(scale.shape)
    # A few blocks a program.
    splits = min(triton.cdiv(x.numel(), 4 * BLOCK), MAXIMUM_SPLITS)
    first, second = scale.new_empty(2, splits)
    with on_device_of(x):
        log_gradient_kernel[(splits,)](
            x, laid_out_as(gradient, x), y, first, second, scale, x.numel(), splits,
            _least_ratio(bits), CARRY=CARRY, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        finish_sums_kernel[(1,)](
            first, second, scale, of_scale, torch.empty_like(of_scale), splits, 1.0, LEARNED=False,
            SPLITS=power_of_two(splits), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return finished(y, x), of_scale
