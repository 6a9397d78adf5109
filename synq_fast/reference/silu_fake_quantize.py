"""SiLU with fake quantization over a trained grid."""

import torch

from synq_fast.reference._activation_fake_quantize import SILU, activation_fake_quantize


def silu_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    gradient_scale: float = 1.0,
    grid: str = "uniform",
) -> torch.Tensor:
    """Rounds SiLU's values to a grid; see `synq_fast.ops.silu_fake_quantize`."""
    return activation_fake_quantize(
        SILU, x, scale, zero_point, bits, gradient_scale=gradient_scale, grid=grid
    )
