"""Integer codes of the affine quantizer."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import check_bits, check_input, check_order, check_range, to_ranges
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import range_shape
from synq_fast.reference.quantize_codes import quantize_codes as _plain

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> Triple:
    check_bits(bits)
    check_input(x, axis, groups)
    check_range("range_min", range_min, x, axis, groups)
    check_range("range_max", range_max, x, axis, groups)
    codes = torch.empty_like(x, dtype=torch.int8 if bits <= 8 else torch.int16)
    shape = range_shape(x, axis, groups)
    scale, zero_point = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return codes, scale, zero_point


def _reference(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> Triple:
    codes, scale, zero_point = _plain(x, range_min, range_max, bits, axis=axis, groups=groups)
    return like(codes, x), scale, zero_point


_op = register(
    "quantize_codes",
    "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, int? groups)"
    " -> (Tensor codes, Tensor scale, Tensor zero_point)",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, low, high, *_: check_order(low, high),
)


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

    With the scale s and the zero point z of `fake_quantize`'s grid:

        codes = clamp(round(s * x - z), -2^(bits - 1), 2^(bits - 1) - 1)

    Nothing is differentiable. A NaN has no code: it becomes 0.

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
        overriding: Triple = overridden(quantize_codes, locals())
        return overriding
    low, high = to_ranges(x, range_min, range_max, axis, groups)
    arguments = (x, low, high, bits, axis, groups)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, low, high, bits, axis=axis, groups=groups)
    try:
        codes, scale, zero_point = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return codes, scale, zero_point
