"""Softmax with fake quantization over equal steps or powers of two."""

import torch

from synq_fast.reference import _probabilities
from synq_fast.reference._precision import to_compute


def softmax_fake_quantize(
    logits: torch.Tensor,
    scale: torch.Tensor | float,
    bits: int,
    *,
    alpha: float = 1.0,
    gradient_scale: float = 1.0,
    grid: str = "uniform",
) -> torch.Tensor:
    """Rounds probabilities to a grid from zero; see `synq_fast.ops.softmax_fake_quantize`."""
    values = torch.softmax(to_compute(logits) * alpha, -1)
    y = _probabilities.rounded(values, scale, bits, grid, gradient_scale=gradient_scale)
    return y.to(logits.dtype)


def softmax_fake_quantize_gradients(
    gradient: torch.Tensor,
    logits: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    alpha: float,
    log2: bool,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of the logits and of the scale."""
    values = torch.softmax(to_compute(logits) * alpha, -1)
    of_value, of_scale = _probabilities.gradients(
        gradient, values, scale, bits, log2, gradient_scale
    )
    along = (of_value * values).sum(-1, keepdim=True)
    return (alpha * values * (of_value - along)).to(logits.dtype), of_scale
