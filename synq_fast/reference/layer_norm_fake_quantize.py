"""Layer normalisation with fake quantization over a learned grid."""

import torch
from torch.nn import functional

from synq_fast.reference._precision import to_compute
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned, learned_gradients

Tensor = torch.Tensor


def layer_norm_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    eps: float = 1e-6,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Rounds normalised rows to a grid; see `synq_fast.ops.layer_norm_fake_quantize`."""
    wide = to_compute(x)
    weight, bias = (None if v is None else v.to(wide.dtype) for v in (weight, bias))
    values = functional.layer_norm(wide, wide.shape[-1:], weight, bias, eps)
    y = fake_quantize_learned(values, scale, zero_point, bits, gradient_scale=gradient_scale)
    return y.to(x.dtype)


def layer_norm_fake_quantize_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    eps: float,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of `x`, weight, bias, scale and zero point."""
    wide = to_compute(x)
    centred = wide - wide.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normal = centred * inverse
    of_value, of_scale, of_zero = learned_gradients(
        gradient, normal * weight + bias, scale, zero_point, bits, gradient_scale
    )
    slope = of_value * weight
    along = (slope * normal).mean(-1, keepdim=True)
    of_x = inverse * (slope - slope.mean(-1, keepdim=True) - normal * along)
    of_weight = (of_value * normal).sum_to_size(weight.shape)
    return of_x.to(x.dtype), of_weight, of_value.sum_to_size(bias.shape), of_scale, of_zero
