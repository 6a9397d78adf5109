"""Fake quantization over a logarithmic grid, and its two gradients."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._channel_sums import launch_sums
from synq_fast.kernels._layout import dense, finished, laid_out_as, on_device_of, output_like
from synq_fast.kernels._log_grid import least_ratio, log_level


@triton.jit
def log_kernel(
    x_ptr, y_ptr, scale_ptr, elements, channels, inner, least,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program handles BLOCK consecutive elements; CHANNELS: each channel has a scale."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    if CHANNELS:
        scale = tl.load(scale_ptr + (offsets // inner) % channels)
    else:
        scale = tl.full((BLOCK,), 0.0, tl.float32) + tl.load(scale_ptr)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        x = tl.load(x_ptr + offsets).to(tl.float32)
        y = scale * log_level(tl.div_rn(x, scale), least)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty))
    else:
        mask = offsets < elements
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        y = scale * log_level(tl.div_rn(x, scale), least)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def fake_quantize_log(
    x: torch.Tensor, scale: torch.Tensor, bits: int, axis: int | None
) -> torch.Tensor:
    """Returns `x` rounded to powers of two times scales, in the dtype and layout of `x`."""
    x, layout = dense(x, axis)
    y = output_like(x)
    if x.numel() > 0:
        block, warps = block_shape("log_kernel", x.dtype)
        with on_device_of(x):
            log_kernel[(triton.cdiv(x.numel(), block),)](
                x, y, scale.contiguous(), x.numel(), layout.channels, layout.inner,
                least_ratio(bits), CHANNELS=layout.channels > 1, BLOCK=block, num_warps=warps,
                enable_fp_fusion=False,
            )  # fmt: skip
    return finished(y, x)


def fake_quantize_log_backward(
    gradient: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, bits: int, axis: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x` and of the scales."""
    x, layout = dense(x, axis)
    y = output_like(x)
    if x.numel() == 0:
        return y, torch.zeros_like(scale)
    of_scale = scale.new_empty(scale.shape)
    launch_sums(
        x, laid_out_as(gradient, x), y, (scale, scale), bits, layout,
        (of_scale, torch.empty_like(of_scale)), logarithmic=True,
    )  # fmt: skip
    return finished(y, x), of_scale
