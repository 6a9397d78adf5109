"""Softmax with fake quantization over a learned scale."""

import torch

from synq_fast.reference._precision import to_compute
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned, learned_gradients


def softmax_fake_quantize(
    logits: torch.Tensor,
    scale: torch.Tensor | float,
    bits: int,
    *,
    alpha: float = 1.0,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Rounds probabilities to a grid from zero; see `synq_fast.ops.softmax_fake_quantize`."""
    values = torch.softmax(to_compute(logits) * alpha, -1)
    zero_point = float(2 ** (bits - 1))
    y = fake_quantize_learned(values, scale, zero_point, bits, gradient_scale=gradient_scale)
    return y.to(logits.dtype)


def softmax_fake_quantize_gradients(
    gradient: torch.Tensor,
    logits: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    alpha: float,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of the logits and of the scale."""
    values = torch.softmax(to_compute(logits) * alpha, -1)
    zero_point = scale.new_full(scale.shape, 2 ** (bits - 1))
    of_value, of_scale, _ = learned_gradients(
        gradient, values, scale, zero_point, bits, gradient_scale
    )
    along = (of_value * values).sum(-1, keepdim=True)
    return (alpha * values * (of_value - along)).to(logits.dtype), of_scale
