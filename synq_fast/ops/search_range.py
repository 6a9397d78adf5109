"""The search for the range with the least quantization error."""

import torch

from synq_fast.ops._backend import select
from synq_fast.ops._checks import check_bits
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_integer,
    check_not_empty,
    check_number,
)
from synq_fast.reference.search_range import search_range as _reference

# Candidate 100 would have an empty range.
MAX_CANDIDATES = 100


def search_range(
    x: torch.Tensor, bits: int, *, candidates: int = 80, norm: float = 2.4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds how far the range of a tensor can shrink before clipping costs more than it gains.

    Candidate `i` of `candidates` is `(1 - 0.01 i)` times the minimum and maximum of `x`. Its score
    is the mean of `|fake_quantize(x) - x| ** norm`; the first candidate with the least score wins.
    `x` is read once per candidate, and memory holds a few copies of `x`, however many candidates.

    A constant `x` keeps its range. If `x` holds NaN the range is NaN; if it holds an infinity the
    unshrunk range is returned. There is no gradient.

    Args:
        x: Values to quantize, any shape with at least one element; float16, bfloat16, float32 or
            float64, searched in float32.
        bits: Bit width, from 2 to 16.
        candidates: Number of candidates, from 1 to 100.
        norm: Exponent of the error, above 0.

    Returns:
        `(range_min, range_max)`, 0-d float32 tensors on the device of `x`.

    Raises:
        TypeError: An argument has another type than said above.
        ValueError: `x` is empty, or `bits`, `candidates` or `norm` is outside its interval.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: the range search of BRECQ (Li et al., ICLR 2021), with the error norm 2.4 of its code.
    """
    check_float_tensor("x", x)
    check_not_empty("x", x, "it has no range")
    check_bits(bits)
    check_integer("candidates", candidates, 1, MAX_CANDIDATES)
    check_number("norm", norm, above=0)
    select("search_range", x.device)
    return _reference(x.detach(), bits, candidates=candidates, norm=norm)
