"""Fake quantization over a learned grid, and its three gradients."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, quantize
from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._channel_sums import launch_sums
from synq_fast.kernels._layout import dense, finished, laid_out_as, on_device_of, output_like
from synq_fast.kernels._philox import Chance, kept_block
from synq_fast.kernels.fake_quantize import Result, launch, load_grid


@triton.jit
def quantize_kept(x, kept, scale, zero_point, half):
    """Returns the elements in float32, those that are kept rounded."""
    x = x.to(tl.float32)
    code = quantize(x, scale, zero_point, -half, half - 1.0)
    return tl.where(kept, dequantize(code, scale, zero_point), x)


@triton.jit
def dropped_kernel(
    x_ptr, y_ptr, scale_ptr, zero_point_ptr, seed_ptr, elements, channels, inner, half, threshold,
    offset, CHANNELS: tl.constexpr, QUADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program handles BLOCK consecutive elements, with a grid for each of CHANNELS or for all."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    channel = (offsets // inner) % channels if CHANNELS else 0
    scale, zero_point = load_grid(scale_ptr, zero_point_ptr, channel, 0.0, half, True)
    kept = kept_block(start, tl.load(seed_ptr), threshold, offset, QUADS, BLOCK)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        y = quantize_kept(tl.load(x_ptr + offsets), kept, scale, zero_point, half)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))
    else:
        mask = offsets < elements
        y = quantize_kept(tl.load(x_ptr + offsets, mask=mask), kept, scale, zero_point, half)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def fake_quantize_learned(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int, axis: int | None
) -> torch.Tensor:
    """Returns `x` rounded to 2^bits levels of the given grid, in the dtype and layout of `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    launch(x, y, (scale, zero_point), bits, layout, Result.VALUES, learned=True)
    return finished(y, x)


def fake_quantize_learned_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, scale and zero point."""
    return _backward(gradient, x, (scale, zero_point), bits, axis, gradient_scale, None)


def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    grid: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    axis: int | None,
    gradient_scale: float,
    chance: Chance | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale, zero_point = grid
    x, layout = dense(x, axis)
    y = output_like(x)
    if x.numel() == 0:
        return y, torch.zeros_like(scale), torch.zeros_like(zero_point)
    of_scale, of_zero_point = scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)
    launch_sums(
        x, laid_out_as(gradient, x), y, grid, bits, layout, (of_scale, of_zero_point),
        gradient_scale=gradient_scale, chance=chance,
    )  # fmt: skip
    return finished(y, x), of_scale, of_zero_point


def fake_quantize_learned_dropped(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    seed: torch.Tensor,
    bits: int,
    axis: int | None,
    keep: float,
    gradient_scale: float,
    offset: int = 0,
) -> torch.Tensor:
    """Returns `x` with the elements that are kept rounded, in the dtype and layout of `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    if x.numel() > 0:
        chance = Chance(seed, keep, offset)
        block, warps = block_shape("dropped_kernel", x.dtype)
        with on_device_of(x):
            dropped_kernel[(triton.cdiv(x.numel(), block),)](
                x, y, scale.contiguous(), zero_point.contiguous(), chance.seed, x.numel(),
                layout.channels, layout.inner, float(2 ** (bits - 1)), chance.threshold,
                chance.offset, CHANNELS=layout.channels > 1, QUADS=chance.by_quads, BLOCK=block,
                num_warps=warps, enable_fp_fusion=False,
            )  # fmt: skip
    return finished(y, x)


def fake_quantize_learned_dropped_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    seed: torch.Tensor,
    bits: int,
    axis: int | None,
    keep: float,
    gradient_scale: float,
    offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, scale and zero point."""
    chance = Chance(seed, keep, offset)
    return _backward(gradient, x, (scale, zero_point), bits, axis, gradient_scale, chance)
