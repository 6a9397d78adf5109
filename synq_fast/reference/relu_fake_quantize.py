"""ReLU followed by fake quantization."""

import torch
from torch.nn import functional

from synq_fast.reference.fake_quantize import fake_quantize


def relu(x: torch.Tensor, upper: float | None) -> torch.Tensor:
    """ReLU, or its form that is clamped at `upper`; the gradient is zero at both bounds.

    A NaN lets the gradient through, which that of `hardtanh` does not.
    """
    value = functional.relu(x)
    return value if upper is None else torch.where(value >= upper, upper, value)


def relu_fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    upper: float | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """Fake quantization of `relu(x)`; see `synq_fast.ops.relu_fake_quantize`."""
    y = fake_quantize(relu(x.float(), upper), range_min, range_max, bits, axis=axis, ste=ste)
    return y.to(x.dtype)
