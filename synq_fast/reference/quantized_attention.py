"""Attention whose operands and probabilities are on grids."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from synq_fast.reference import _probabilities
from synq_fast.reference._affine import along_axis, as_range, clamp_codes, unclamped_codes
from synq_fast.reference._precision import to_compute
from synq_fast.reference.fake_quantize_learned import (
    fake_quantize_learned,
    learned_gradients,
    whole,
)

Tensor = torch.Tensor
HEADS = 1


def per_operand(value: Any) -> list[Any]:
    """Returns what queries, keys, values and probabilities have, given for each or for all."""
    return list(value) if isinstance(value, (tuple, list)) else [value] * 4


def axis_of(scale: Tensor | float) -> int | None:
    """Returns the dimension of the heads where each has a grid of its own."""
    return HEADS if isinstance(scale, Tensor) and scale.numel() > 1 else None


def quantized_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_scale: torch.Tensor | float,
    q_zero_point: torch.Tensor | float,
    k_scale: torch.Tensor | float,
    k_zero_point: torch.Tensor | float,
    v_scale: torch.Tensor | float,
    v_zero_point: torch.Tensor | float,
    p_scale: torch.Tensor | float,
    bits: int | Sequence[int],
    *,
    alpha: float = 1.0,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    gradient_scale: float | Sequence[float] = 1.0,
    p_grid: str = "uniform",
) -> torch.Tensor:
    """Multiplies quantized operands; see `synq_fast.ops.quantized_attention`."""
    widths, factors = per_operand(bits), per_operand(gradient_scale)

    def rounded(place: int, x: Tensor, scale: Tensor | float, zero: Tensor | float) -> Tensor:
        return fake_quantize_learned(
            to_compute(x), scale, zero, widths[place],
            axis=axis_of(scale), gradient_scale=factors[place],
        )  # fmt: skip

    with torch.autocast(q.device.type, enabled=False):
        queries = rounded(0, q, q_scale, q_zero_point)
        keys = rounded(1, k, k_scale, k_zero_point)
        values = rounded(2, v, v_scale, v_zero_point)
        logits = _shifted(queries @ keys.transpose(-2, -1) * alpha, bias, mask)
        probabilities = _probabilities.rounded(
            logits.softmax(-1), p_scale, widths[3], p_grid,
            axis=axis_of(p_scale), gradient_scale=factors[3],
        )  # fmt: skip
        return (probabilities @ values).to(q.dtype)


def _shifted(logits: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """Adds a bias `(H, N, M)`, and the masks `(W, N, M)` in turn to the images of a batch."""
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=logits.dtype).masked_fill(~mask, float("-inf"))
        windows = mask.shape[0] if mask.ndim > 2 else 1
        mask = mask.reshape(windows, 1, *mask.shape[-2:])
        shape = logits.shape
        logits = (logits.reshape(-1, windows, *shape[1:]) + mask).reshape(shape)
    return logits


class Grid(NamedTuple):
    """A pair that broadcasts over its operand, with the width of its codes."""

    scale: Tensor
    zero_point: Tensor
    bits: int

    def codes(self, x: Tensor) -> Tensor:
        """Returns the codes of values, counted from that of zero."""
        zero = whole(self.zero_point)
        return clamp_codes(unclamped_codes(x, self.scale, zero), self.bits) + zero


def grids_of(
    operands: Sequence[Tensor], pairs: Sequence[Tensor], bits: Sequence[int]
) -> list[Grid]:
    """Returns the grids of queries, keys and values."""
    grids = []
    for x, scale, zero, width in zip(operands, pairs[::2], pairs[1::2], bits, strict=False):
        axis = axis_of(scale)
        factor, offset = (along_axis(as_range(value, x, axis), x, axis) for value in (scale, zero))
        grids.append(Grid(factor, offset, width))
    return grids


def quantized_attention_gradients(
    gradient: torch.Tensor,
    operands: Sequence[Tensor],
    given: Sequence[Tensor],
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    bits: Sequence[int],
    alpha: float,
    log2: bool,
    gradient_scales: Sequence[float],
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """Returns the gradients of each operand with scale and zero point, and of the bias.

    `given` are scales and zero points of queries, keys and values, and the scale of probabilities.
    """
    gradient = gradient.float()
    grids, p_scale = grids_of(operands, given, bits), given[-1]
    queries, keys, values = (
        grid.codes(x) / grid.scale for grid, x in zip(grids, operands, strict=True)
    )
    shifted = _shifted(queries @ keys.transpose(-2, -1) * alpha, bias, mask)
    p = shifted.softmax(-1)
    p_axis, p_grid = axis_of(p_scale), "log2" if log2 else "uniform"
    rounded = _probabilities.rounded(p, p_scale, bits[3], p_grid, axis=p_axis)

    def through(place: int, of_y: Tensor) -> tuple[Tensor, ...]:
        grid = grids[place]
        return learned_gradients(
            of_y, operands[place], grid.scale, grid.zero_point, grid.bits, gradient_scales[place]
        )

    of_v = through(2, rounded.transpose(-2, -1) @ gradient)
    of_p = _probabilities.gradients(
        gradient @ values.transpose(-2, -1), p, along_axis(as_range(p_scale, p, p_axis), p, p_axis),
        bits[3], log2, gradient_scales[3],
    )  # fmt: skip
    slopes = p * (of_p[0] - (of_p[0] * p).sum(-1, keepdim=True))
    of_q = through(0, alpha * (slopes @ keys))
    of_k = through(1, alpha * (slopes.transpose(-2, -1) @ queries))
    return [of_q, of_k, of_v, of_p], slopes.sum(0)
