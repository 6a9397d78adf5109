"""GELU with fake quantization over a learned grid."""

import math

import torch

from synq_fast.reference._precision import to_compute
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned, learned_gradients


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Returns the exact GELU; torch's own gives NaN at infinity in some sizes."""
    y: torch.Tensor = x * torch.special.ndtr(x)
    return y


def gelu_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Rounds GELU's values to a learned grid; see `synq_fast.ops.gelu_fake_quantize`."""
    values = gelu(to_compute(x))
    y = fake_quantize_learned(values, scale, zero_point, bits, gradient_scale=gradient_scale)
    return y.to(x.dtype)


def gelu_fake_quantize_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of `x`, scale and zero point."""
    wide = to_compute(x)
    below = torch.special.ndtr(wide)
    of_value, of_scale, of_zero = learned_gradients(
        gradient, wide * below, scale, zero_point, bits, gradient_scale
    )
    density = torch.exp(wide.square() * -0.5) / math.sqrt(2 * math.pi)
    return (of_value * (below + wide * density)).to(x.dtype), of_scale, of_zero
