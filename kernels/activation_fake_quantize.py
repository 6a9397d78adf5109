"""Activation functions with fake quantization over one learned grid, and the three gradients.

Backward each program sums its share of the tiles in float32, and a second kernel adds the sums in
float64. Every sum has its place, so every run gives the same bits.
"""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, quantize
from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._channel_sums import MAXIMUM_SPLITS, finish_sums_kernel, learned_terms
from synq_fast.kernels._layout import (
    dense,
    finished,
    laid_out_as,
    on_device_of,
    output_like,
    power_of_two,
)
from synq_fast.kernels._minifloat_grid import largest_level, minifloat_level, minifloat_terms
from synq_fast.kernels.fake_quantize import EQUAL_STEPS, load_grid

GRADIENT_BLOCK = 1024
# In the order of csrc/activation_functions.h.
GELU = tl.constexpr(0)
SILU = tl.constexpr(1)
HARDSWISH = tl.constexpr(2)


@triton.jit
def normal(x):
    """Returns the part of the standard normal distribution below `x`, and its density at `x`.

    The part beyond a distance u is exp(-u^2 / 2) t times a polynomial of t = 1 / (1 + 0.35 u), a
    minimax one within a relative 3e-8.
    """
    power = tl.exp(x * x * -0.5)
    t = tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + tl.abs(x) * 0.35)
    tail = t * -0.02914593741297722 + 0.1439717411994934
    tail = tail * t - 0.2557143270969391
    tail = tail * t + 0.15917424857616425
    tail = tail * t - 0.02310989238321781
    tail = tail * t + 0.10550802946090698
    tail = tail * t + 0.11983285844326019
    tail = tail * t + 0.13986186683177948
    tail = tail * t + 0.13962140679359436
    beyond = power * t * tail
    return tl.where(x < 0.0, beyond, 1.0 - beyond), power * 0.3989422804014327


@triton.jit
def sigmoids(x):
    """Returns the sigmoid at `x` and at `-x`, both to a few units in the last place."""
    power = tl.exp(-tl.abs(x))
    larger = tl.div_rn(tl.full(x.shape, 1.0, tl.float32), power + 1.0)
    smaller = power * larger
    return tl.where(x < 0.0, smaller, larger), tl.where(x < 0.0, larger, smaller)


@triton.jit
def curve(x, ACTIVATION: tl.constexpr):
    """Returns the value of an activation function and its slope; NaN stays, in the slope too."""
    if ACTIVATION == GELU:
        below, density = normal(x)
        value = x * below
        slope = below + x * density
    elif ACTIVATION == SILU:
        here, across = sigmoids(x)
        value = x * here
        slope = here * (x * across + 1.0)
    else:
        gate = tl.clamp(x, -3.0, 3.0, propagate_nan=tl.PropagateNan.ALL) + 3.0
        value = x * gate * 0.1666666716337204
        slope = tl.where(x >= 3.0, 1.0, x * 0.3333333432674408 + 0.5)
        slope = tl.where(x <= -3.0, 0.0, slope)
    return value, slope


@triton.jit
def rounded(x, scale, zero_point, half, largest, MANTISSA: tl.constexpr):
    """Returns values on equal steps, or on small floats where there is a mantissa."""
    if MANTISSA >= 0:
        code = minifloat_level(x, scale, zero_point, largest, MANTISSA)
    else:
        code = quantize(x, scale, zero_point, -half, half - 1.0)
    return dequantize(code, scale, zero_point)


@triton.jit
def activation_kernel(
    x_ptr, y_ptr, scale_ptr, zero_point_ptr, elements, half, largest,
    ACTIVATION: tl.constexpr, MANTISSA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program handles BLOCK consecutive elements.

    MANTISSA: the bits of small floats, of which `largest` is the largest; below 0 steps are equal.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    scale, zero_point = load_grid(scale_ptr, zero_point_ptr, 0, 0.0, half, True)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        value, _ = curve(tl.load(x_ptr + offsets).to(tl.float32), ACTIVATION)
        y = rounded(value, scale, zero_point, half, largest, MANTISSA)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))
    else:
        mask = offsets < elements
        value, _ = curve(tl.load(x_ptr + offsets, mask=mask).to(tl.float32), ACTIVATION)
        y = rounded(value, scale, zero_point, half, largest, MANTISSA)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def activation_gradient_kernel(
    x_ptr, gradient_ptr, y_ptr, first_ptr, second_ptr, scale_ptr, zero_point_ptr, elements, splits,
    half, largest, ACTIVATION: tl.constexpr, MANTISSA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program `split` handles every `splits`-th block."""
    split = tl.program_id(0).to(tl.int64)
    scale, zero_point = load_grid(scale_ptr, zero_point_ptr, 0, 0.0, half, True)
    first = tl.full((BLOCK,), 0.0, tl.float32)
    second = tl.full((BLOCK,), 0.0, tl.float32)
    start = split * BLOCK
    while start < elements:  # the interpreter cannot run `range` over tensors with every NumPy
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < elements
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        value, slope = curve(x, ACTIVATION)
        if MANTISSA >= 0:
            of_value, one, other = minifloat_terms(
                gradient, value, scale, zero_point, largest, MANTISSA
            )
        else:
            of_value, one, other = learned_terms(gradient, value, scale, zero_point, half)
        y = of_value * slope
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        # A NaN zero point makes NaN of what the mask left out.
        first += tl.where(mask, one, 0.0)
        second += tl.where(mask, other, 0.0)
        start += splits * BLOCK
    tl.store(first_ptr + split, tl.sum(first, 0))
    tl.store(second_ptr + split, tl.sum(second, 0))


def grid_of(bits: int, minifloat: bool) -> tuple[float, float]:
    """Returns `half` and `largest`, which kernels are given beside the mantissa."""
    return float(2 ** (bits - 1)), float(largest_level(bits)) if minifloat else 0.0


def activation_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    activation: int,
    bits: int,
    minifloat: bool,
) -> torch.Tensor:
    """Returns the function's values rounded to the grid, in the dtype and layout of `x`."""
    x, _ = dense(x, None)
    y = output_like(x)
    if x.numel() > 0:
        block, warps = block_shape("activation_kernel", x.dtype)
        with on_device_of(x):
            activation_kernel[(triton.cdiv(x.numel(), block),)](
                x, y, scale, zero_point, x.numel(), *grid_of(bits, minifloat),
                ACTIVATION=activation, MANTISSA=bits - 3 if minifloat else EQUAL_STEPS,
                BLOCK=block, num_warps=warps, enable_fp_fusion=False,
            )  # fmt: skip
    return finished(y, x)


def activation_fake_quantize_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    activation: int,
    bits: int,
    minifloat: bool,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, scale and zero point."""
    x, _ = dense(x, None)
    y = output_like(x)
    if x.numel() == 0:
        return y, torch.zeros_like(scale), torch.zeros_like(zero_point)
    of_scale, of_zero_point = scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)
    # A few blocks a program.
    splits = min(triton.cdiv(x.numel(), 4 * GRADIENT_BLOCK), MAXIMUM_SPLITS)
    first, second = scale.new_empty(2, splits)
    with on_device_of(x):
        activation_gradient_kernel[(splits,)](
            x, laid_out_as(gradient, x), y, first, second, scale, zero_point, x.numel(), splits,
            *grid_of(bits, minifloat),
            ACTIVATION=activation, MANTISSA=bits - 3 if minifloat else EQUAL_STEPS,
            BLOCK=GRADIENT_BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        finish_sums_kernel[(1,)](
            first, second, scale, of_scale, of_zero_point, splits, gradient_scale, LEARNED=True,
            SPLITS=power_of_two(splits), num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return finished(y, x), of_scale, of_zero_point
