"""Integer codes of the affine quantizer."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast import reference
from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._checks import check_bits, check_input, check_order, to_ranges
from synq_fast.ops._overrides import overridden

_default = torch.ops.synq_fast.quantize_codes.default
_triton = torch.ops.synq_fast.quantize_codes.triton


def quantize_codes(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantizes `x` to signed integers; `(codes + zero_point) / scale` is `fake_quantize(x)`.

    The grid is that of `fake_quantize`. Nothing is differentiable. A NaN has no code: it becomes 0.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        range_min: Lower bound, as in `fake_quantize`: a number, or a tensor with one element, or
            `(C,)` with `axis`, or `(groups,)`.
        range_max: Upper bound, like `range_min`.
        bits: Width of the codes, from 2 to 16.
        axis: The dimension that has one range per index; None for one range in all.
        groups: Splits the channels of `axis` into so many equal runs of consecutive channels that
            share a range. None gives each channel its own.

    Returns:
        `(codes, scale, zero_point)`: the codes are in `[-2^(bits - 1), 2^(bits - 1) - 1]`, int8 up
        to 8 bits and int16 above, in the layout of `x`; `scale` (steps per unit) and `zero_point`
        (a whole number) are float32, with the shape of the ranges.

    Raises:
        TypeError: `x`, a range, `bits`, `axis` or `groups` is of another type than said above.
        ValueError: `bits` is not allowed, `groups` does not divide the channels or comes without
            `axis`, a range has the wrong length or device, or `range_min > range_max` (for tensors
            on a GPU the values are not read).
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the quantizer of ZeroQ (CVPR 2020) and GDFQ (ECCV 2020), used by SynQ (ICLR 2025).
    """
    if has_torch_function_variadic(x, range_min, range_max):
        overriding: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = overridden(
            quantize_codes, locals()
        )
        return overriding
    check_bits(bits)
    check_input(x, axis, groups)
    low, high = to_ranges(x, range_min, range_max, axis, groups)
    backend = select("quantize_codes", x.device)
    if backend == "reference":
        check_order(low, high)
        return reference.quantize_codes(x, low, high, bits, axis=axis, groups=groups)
    op = _triton if backend == "triton" else _default
    codes, scale, zero_point = op(x, low, high, bits, axis, groups)
    return codes, scale, zero_point
