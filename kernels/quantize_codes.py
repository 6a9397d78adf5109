"""Integer codes, scale and zero point with a given range, by the kernels of `fake_quantize`."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import make_affine
from synq_fast.kernels._layout import dense, on_device_of
from synq_fast.kernels.fake_quantize import Result, launch

BLOCK = 256


@triton.jit
def affine_kernel(
    min_ptr, max_ptr, scale_ptr, zero_point_ptr, channels, levels, half, BLOCK: tl.constexpr
):
    """Writes each channel's scale and zero point."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    range_min = tl.load(min_ptr + channel, mask=mask)
    range_max = tl.load(max_ptr + channel, mask=mask)
    scale, zero_point = make_affine(range_min, range_max, levels, half)
    tl.store(scale_ptr + channel, scale, mask=mask)
    tl.store(zero_point_ptr + channel, zero_point, mask=mask)


def quantize_codes(
    x: torch.Tensor,
    range_min: torch.Tensor,
    range_max: torch.Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns codes, scale and zero point.

    Codes are int8 up to 8 bits and int16 above, NaN is 0; the rest is float32, like the ranges.
    """
    x, layout = dense(x, axis, groups)
    codes = torch.empty_like(x, dtype=torch.int8 if bits <= 8 else torch.int16)
    scale = torch.empty_like(range_min, memory_format=torch.contiguous_format)
    zero_point = torch.empty_like(scale)
    channels = scale.numel()
    if channels > 0:
        with on_device_of(x):
            affine_kernel[(triton.cdiv(channels, BLOCK),)](
                range_min.contiguous(), range_max.contiguous(), scale, zero_point, channels,
                float(2**bits - 1), float(2 ** (bits - 1)),
                BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    launch(x, codes, (range_min, range_max), bits, layout, Result.CODES)
    return codes, scale, zero_point
