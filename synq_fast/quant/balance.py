"""Codes of weights whose rounding errors add up to nothing, found from the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synq_fast.errors import ModelError
from synq_fast.quant.layers import WeightQuantized

# Beyond half a step the weight rounds to the code that was chosen, whatever its last digits.
_WITHIN = 0.49
# Beyond that, float32 does not tell a hundredth of a step: a range of (nearly) one value.
_FARTHEST = 2**16
# Weights that are looked at together, in float64: the largest layers have a hundred million.
_AT_ONCE = 1 << 22
BALANCED = "balanced"


@torch.no_grad()
def balance_weights(model: nn.Module) -> int:
    """Move weights to where rounding errors cancel, as little as that takes, in place.

    What a kernel's errors add up to is what it gives on an even surface, and rounding to the
    nearest code leaves it to chance: a kernel that finds edges then answers to brightness. First
    each kernel turns the weights that err most to their other neighbour until its errors add up to
    at most half a step, then each output channel does with at most one weight of a kernel (SQuant,
    arXiv 2202.07471, its flips of kernels and of channels). Weights that turn come to lie just
    beyond half a step, all others stay as they are.

    Args:
        model: its quantized layers must have fixed ranges, ``weight_range = "learned"``.

    Returns:
        How many weights turned.

    Raises:
        ModelError: ranges are not fixed.
    """
    turned = 0
    for layer in model.modules():
        if isinstance(layer, WeightQuantized):
            if layer.gain is None:
                raise ModelError(
                    "ranges that follow the weights would move with them: quantize with "
                    'quantization.weight_range = "learned"'
                )
            turned += _balance(layer)
    return turned


def _balance(layer: WeightQuantized) -> int:
    grid, weight, quantized = layer.grid(), layer.weight, layer.derive()
    rows = max(1, _AT_ONCE // max(1, weight[:1].numel()))
    turned = 0
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        scale, zero_point = (
            v[part].double().view(-1, *(1,) * (weight.dim() - 1))
            for v in (grid.scale, grid.zero_point)
        )
        at = weight[part].double() * scale - zero_point
        nearest = (quantized[part].double() * scale - zero_point).round()
        codes = balanced_codes(at, nearest, grid.low, grid.high)
        turns = (codes != nearest) & (zero_point.abs() <= _FARTHEST)
        moved = (codes + _WITHIN * (at - codes).sign() + zero_point) / scale
        weight[part] = torch.where(turns, moved.to(weight.dtype), weight[part])
        turned += int(turns.sum())
    return turned


def balanced_codes(at: Tensor, nearest: Tensor, low: int, high: int) -> Tensor:
    """Codes, each one of the two around its weight, with errors that cancel.

    Args:
        at: (C, ...) weights in steps, a kernel (C_in, H, W) for each output channel, or (C_in,).
        nearest: (C, ...) their nearest codes.
        low: the smallest code.
        high: the largest one; weights beyond either are left where they are.
    """
    kernels = at.flatten(2) if at.dim() > 2 else at.unsqueeze(2)
    codes = nearest.view_as(kernels).clone()
    inside = (kernels >= low) & (kernels <= high)

    def errors() -> Tensor:
        """(C, C_in, H W) of what can turn, 0 elsewhere."""
        error = codes - kernels
        can = inside & (codes - error.sign() >= low) & (codes - error.sign() <= high)
        return torch.where(can, error, 0.0)

    def rest() -> Tensor:
        """(C, C_in) what the errors of a kernel add up to."""
        return torch.where(inside, codes - kernels, 0.0).sum(2)

    codes -= _turns(errors(), rest())
    sums = rest()
    wanted = sums.sum(1)
    towards = wanted.sign()[:, None]
    error = errors() * towards[..., None]
    largest, where = error.max(2)
    # Only where it brings the kernel's own sum nearer to zero as well.
    useful = (largest > 0) & (sums * towards > 0)
    chosen = _turns(torch.where(useful, sums, 0.0), wanted)
    codes.scatter_add_(2, where[..., None], -chosen[..., None])
    return codes.view_as(at)


def _turns(errors: Tensor, sums: Tensor) -> Tensor:
    """1 or -1 for the largest errors (..., N) of the sign of their sum (...), as many as it has."""
    sign = sums.sign()[..., None]
    size = errors * sign
    rank = size.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    count = sums.abs().round()[..., None]
    return torch.where((rank < count) & (size > 0), sign, 0.0)
