"""A per-channel affine map, ReLU and fake quantization in a row."""

import torch

from synq_fast.reference._affine import along_axis
from synq_fast.reference.fake_quantize import fake_quantize
from synq_fast.reference.relu_fake_quantize import relu


def affine_relu_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    residual: torch.Tensor | None = None,
    upper: float | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """Fake quantization of `relu(x * weight + bias + residual)`; see `synq_fast.ops`."""
    value = x.float() * along_axis(weight, x, 1) + along_axis(bias, x, 1)
    if residual is not None:
        value = value + residual.float()
    return fake_quantize(relu(value, upper), range_min, range_max, bits, ste=ste).to(x.dtype)
