"""Fake quantization over the tensor's own range."""

import torch
from torch.overrides import has_torch_function_unary

# Registers the gradient.
from synq_fast.ops._checks import check_bits, check_flag, check_input, is_clipped
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import range_shape
from synq_fast.reference.fake_quantize_dynamic import fake_quantize_dynamic as _plain

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake(
    x: Tensor, bits: int, axis: int | None, groups: int | None, symmetric: bool, clip: bool
) -> Triple:
    check_bits(bits)
    check_flag("symmetric", symmetric)
    check_input(x, axis, groups)
    shape = range_shape(x, axis, groups)
    low, high = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), low, high


def _reference(
    x: Tensor, bits: int, axis: int | None, groups: int | None, symmetric: bool, clip: bool
) -> Triple:
    y, range_min, range_max = _plain(x, bits, axis=axis, groups=groups, symmetric=symmetric)
    return like(y, x), range_min, range_max


_op = register(
    "fake_quantize_dynamic",
    "(Tensor x, int bits, int? axis, int? groups, bool symmetric, bool clip)"
    " -> (Tensor y, Tensor range_min, Tensor range_max)",
    fake=_fake,
    reference=_reference,
    gradients={
        "x": "fake_quantize_backward(grad_y, x, range_min, range_max, bits, axis, groups)"
        " if clip else grad_y"
    },
    triton_arguments=5,
)


def fake_quantize_dynamic(
    x: torch.Tensor,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
    symmetric: bool = False,
    ste: str = "identity",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake quantization of `x` from its exact minimum to its exact maximum.

    The same grid as `fake_quantize`, over the extrema of the whole tensor or, with `axis`, of every
    index of that dimension or every run of them. This is how weights are quantized. The ranges are
    constants to autograd. `fake_quantize` and `quantize_codes` over the ranges returned give the
    same values bit for bit.

    `symmetric` widens the range to the one around zero. With `a = max(|min|, |max|, 5e-9)` it is
    `[-(1 + 2^-20) a, a]`: from exactly `-a`, `s * range_min` would be a tie, and a rounding error
    of `s` would decide between the zero points 0 and 1. This way the zero point is 0 for every
    width, and the codes stay within `2^(bits - 1) - 1` on both sides.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        bits: Width of the codes, from 2 to 16.
        axis: The dimension that has one range per index; None for one range in all.
        groups: Splits the channels of `axis` into so many equal runs of consecutive channels that
            share a range. None gives each channel its own.
        symmetric: Whether the range lies around zero, for codes without a zero point.
        ste: Straight-through gradient, as in `fake_quantize`. With "clip" only values that land
            half a step beyond the last level lose their gradient.

    Returns:
        `(y, range_min, range_max)`: `y` has the shape, type and layout of `x`; the ranges are
        float32, `()`, `(C,)` or `(groups,)`. A NaN makes its range and all values of its range NaN.
        Without elements there is no range, and NaN is returned for it.

    Raises:
        TypeError: `x`, `bits`, `axis`, `groups` or `symmetric` is of another type than said above.
        ValueError: `bits` or `ste` is none of the allowed values, or `groups` does not divide the
            channels or comes without `axis`.
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the weight quantizer of ZeroQ (CVPR 2020) and GDFQ (ECCV 2020), used by SynQ (ICLR
    2025).
    """
    if has_torch_function_unary(x):
        overriding: Triple = overridden(fake_quantize_dynamic, locals())
        return overriding
    if axis is not None or type(symmetric) is not bool:
        # A bool would do as an axis, and a number as a flag, where ops are called.
        check_flag("symmetric", symmetric)
        check_input(x, axis, groups)
    arguments = (x, bits, axis, groups, symmetric, is_clipped(ste))
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, bits, axis=axis, groups=groups, symmetric=symmetric, ste=ste)
    try:
        y, range_min, range_max = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return y, range_min, range_max
