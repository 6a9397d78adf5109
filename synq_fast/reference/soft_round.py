"""The soft rounding of weights."""

import torch

from synq_fast.reference._affine import along_axis, clamp_codes, range_shape
from synq_fast.reference._forward_mode import constant
from synq_fast.reference._precision import to_compute
from synq_fast.reference.fake_quantize_learned import whole


def share(v: torch.Tensor) -> torch.Tensor:
    """Returns how much of a step is added: a sigmoid that reaches 0 and 1."""
    return (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)


def _per_channel(value: torch.Tensor | float, v: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Returns a parameter in the type of `v`, so that it broadcasts over it."""
    value = torch.as_tensor(value, dtype=v.dtype, device=v.device)
    shape = range_shape(v, axis, None)
    return along_axis(value.reshape(shape) if axis is None else value.expand(shape), v, axis)


def soft_round(
    v: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    exponent: torch.Tensor | float,
    *,
    axis: int | None = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights between two levels, and their distance from both; see `synq_fast.ops.soft_round`."""
    v = to_compute(v)
    factor = _per_channel(scale, v, axis)
    offset = constant(whole(_per_channel(zero_point, v, axis)))
    power = constant(torch.as_tensor(exponent, dtype=v.dtype, device=v.device).reshape(()))
    h = share(v)
    w = (clamp_codes(base + h, bits) + offset) / factor
    return w, (1 - (2 * h - 1).abs().pow(power)).sum()


def soft_round_gradients(
    grad_w: torch.Tensor | None,
    grad_penalty: torch.Tensor | None,
    v: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    bits: int,
    exponent: torch.Tensor,
    axis: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of `v` and of the scale; an incoming one may be missing."""
    factor = _per_channel(scale, v, axis)
    offset = whole(_per_channel(zero_point, v, axis))
    sigmoid = torch.sigmoid(v)
    h = share(v)
    of_h = torch.zeros_like(v)
    of_factor = torch.zeros_like(factor)
    if grad_w is not None:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        # Between two levels of the grid, which 0 < h < 1 leaves to the base alone.
        of_h += torch.where((base >= low) & (base < high), grad_w / factor, 0.0)
        w = (clamp_codes(base + h, bits) + offset) / factor
        of_factor -= (grad_w * w / factor).sum_to_size(factor.shape)
    if grad_penalty is not None:
        u = 2 * h - 1
        of_h -= grad_penalty * 2 * exponent * u.abs().pow(exponent - 1) * u.sign()
    # NaN is within.
    within = ~((h <= 0) | (h >= 1))
    slope = 1.2 * sigmoid * (1 - sigmoid)
    return torch.where(within, of_h * slope, 0.0), of_factor.reshape(scale.shape)
