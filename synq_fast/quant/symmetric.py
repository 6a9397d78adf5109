"""Symmetric grids: zero point 0, and as many codes below zero as above it."""

from __future__ import annotations

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.reference._affine import MINIMUM_WIDTH

_CANDIDATES = 80
_NORM = 2.4
# The ops widen narrower ranges to that, from the lower end, which moves the zero point away from 0:
# those of channels that a network has given up.
_SMALLEST = MINIMUM_WIDTH


def symmetric_ends(largest: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The range whose grid has zero point 0 and gives out ``largest`` as its largest number.

    The grid has one code more below zero, -2^(k-1).

    Args:
        largest: of any shape, float32, the largest absolute value; at least 1e-8 is taken.
        bits: width, 2 to 8.
    """
    half = 2 ** (bits - 1)
    largest = largest.clamp_min(_SMALLEST)
    return -largest * (half / (half - 1)), largest


@torch.no_grad()
def searched(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The symmetric range of each output channel (C, ...) with the least quantization error.

    Candidates and error are those of ``ops.search_range``, which moves the ends of asymmetric
    ranges.
    """
    rows = weight.flatten(1)
    largest = rows.abs().amax(1)
    best = torch.full_like(largest, torch.inf)
    chosen = largest
    for i in range(_CANDIDATES):
        candidate = largest * (1 - 0.01 * i)
        error = ops.fake_quantize(rows, *symmetric_ends(candidate, bits), bits, axis=0) - rows
        score = error.abs_().pow_(_NORM).mean(1)
        chosen = torch.where(score < best, candidate, chosen)
        best = torch.minimum(best, score)
    return symmetric_ends(chosen, bits)
