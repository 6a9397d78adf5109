"""The search for the range with the least quantization error."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._checks import check_bits
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_axis,
    check_float_tensor,
    check_integer,
    check_not_empty,
    check_number,
)
from synq_fast.reference._affine import range_shape
from synq_fast.reference.search_range import search_range as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
# Candidate 100 would have an empty range.
MAX_CANDIDATES = 100
# Of the kernels: beyond, float32 cannot hold the powers of a tensor's small and large errors.
MAX_KERNEL_NORM = 16


def _check(x: Tensor, bits: int, candidates: int, norm: float, axis: int | None) -> None:
    check_float_tensor("x", x)
    check_axis(axis, "x", x)
    check_not_empty("x", x, "it has no range")
    check_bits(bits)
    check_integer("candidates", candidates, 1, MAX_CANDIDATES)
    check_number("norm", norm, above=0)


def _fake(x: Tensor, bits: int, candidates: int, norm: float, axis: int | None = None) -> Pair:
    _check(x, bits, candidates, norm, axis)
    if norm > MAX_KERNEL_NORM:
        raise ValueError(f"norm must be at most {MAX_KERNEL_NORM}, got {norm}")
    shape = range_shape(x, axis, None)
    low, high = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return low, high


def _reference(x: Tensor, bits: int, candidates: int, norm: float, axis: int | None = None) -> Pair:
    return _plain(x, bits, candidates=candidates, norm=norm, axis=axis)


_op = register(
    "search_range",
    "(Tensor x, int bits, int candidates, float norm, int? axis=None)"
    " -> (Tensor range_min, Tensor range_max)",
    fake=_fake,
    reference=_reference,
)


def search_range(
    x: torch.Tensor,
    bits: int,
    *,
    candidates: int = 80,
    norm: float = 2.4,
    axis: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds how far the range of a tensor can shrink before clipping costs more than it gains.

    Candidate `i` of `candidates` is `(1 - 0.01 i)` times the minimum and maximum of `x`. Its score
    is the mean of `|fake_quantize(x) - x| ** norm`; the first candidate with the least score wins.
    Backends take the errors bit for bit as `fake_quantize` makes them, and round powers and sums
    differently: where the two best scores differ by less than 1e-5 of the least, for a `norm` up to
    4, they may choose differently. Each gives the same choice in every run.

    The reference reads `x` several times per candidate, and its float32 scores overflow for errors
    above 1e16 at the default `norm`. The GPU kernels read `x` twice, for its extrema and for all
    candidates at once. The CPU kernel first counts `x` in a histogram, which bounds every score,
    and reads `x` once more for the few candidates that can still win.

    A constant `x` keeps its range. If `x` holds NaN the range is NaN; if it holds an infinity the
    unshrunk range is returned. With `axis` every channel has a search and such rules of its own,
    and finds what it would find alone. There is no gradient.

    Args:
        x: Values to quantize, any shape with at least one element; float16, bfloat16, float32, or
            float64, which always runs on the reference; searched in float32.
        bits: Bit width, from 2 to 16.
        candidates: Number of candidates, from 1 to 100.
        norm: Exponent of the error, above 0; above 16 it always runs on the reference.
        axis: The dimension that has one range per index; None for one range in all.

    Returns:
        `(range_min, range_max)`, float32 tensors on the device of `x`: 0-d, or `(C,)` with `axis`,
        where C is the size of that dimension.

    Raises:
        TypeError: An argument has another type than said above.
        ValueError: `x` is empty, or `bits`, `candidates` or `norm` is outside its interval.
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the range search of BRECQ (Li et al., ICLR 2021), with the error norm 2.4 of its code.
    """
    if has_torch_function_unary(x):
        overriding: Pair = overridden(search_range, locals())
        return overriding
    _check(x, bits, candidates, norm, axis)
    op = _op.on(x)
    if op is None or norm > MAX_KERNEL_NORM:
        return _plain(x.detach(), bits, candidates=candidates, norm=norm, axis=axis)
    range_min, range_max = op(x, bits, candidates, norm, axis)
    return range_min, range_max
