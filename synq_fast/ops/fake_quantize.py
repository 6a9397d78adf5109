"""Fake quantization over a given range."""

from typing import Any

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_order,
    check_range,
    is_clipped,
    to_ranges,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import as_range, clipped
from synq_fast.reference.fake_quantize import fake_quantize as _plain

Tensor = torch.Tensor


def _fake(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
    clip: bool = False,
) -> Tensor:
    check_bits(bits)
    check_input(x, axis, groups)
    check_range("range_min", range_min, x, axis, groups)
    check_range("range_max", range_max, x, axis, groups)
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    result = _fake(x, *arguments)
    check_gradient(grad, x)
    return result


def _reference(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
    clip: bool,
) -> Tensor:
    return like(_plain(x, range_min, range_max, bits, axis=axis, groups=groups), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> Tensor:
    low, high = (as_range(bound, x, axis, groups) for bound in (range_min, range_max))
    return like(grad.masked_fill(clipped(x, low, high, bits, axis), 0.0).to(x.dtype), x)


# The clipped gradient is linear in the incoming one with a symmetric mask: its own derivative.
register(
    "fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, int? groups)"
    " -> Tensor of_x",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, low, high, *_: check_order(low, high),
    gradients={
        "grad": "fake_quantize_backward(grad_of_x, x, range_min, range_max, bits, axis, groups)"
    },
)
_op = register(
    "fake_quantize",
    "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, int? groups, bool clip)"
    " -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, low, high, *_: check_order(low, high),
    gradients={
        "x": "fake_quantize_backward(grad, x, range_min, range_max, bits, axis, groups)"
        " if clip else grad"
    },
    triton_arguments=6,
)


def fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """Rounds `x` to the `2^bits` levels of an affine grid over `[range_min, range_max]`.

    In float32, each operation rounded on its own and halves rounded to even:

        s = 1 / max(range_max - range_min, 1e-8) * (2^bits - 1)
        z = round(s * range_min) + 2^(bits - 1)
        q = clamp(round(s * x - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / s

    The width is halved before it is taken, so a range may span more than the largest float32; only
    a level beyond that number itself is infinite. Every backend gives the same bits. NaN in `x` or
    in its range gives NaN; an infinity is clamped; an empty tensor gives an empty one. Contiguous,
    channels_last and other dense layouts are read as they lie and kept. Under autocast the op runs
    in the type of `x`.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        range_min: Lower bound: a number, or a float32, float16 or bfloat16 tensor on x's device
            with one element, or `(C,)` with `axis`, where C is the size of that dimension, or
            `(groups,)`. It receives no gradient. The grid is computed in float32 from it; a float64
            tensor is refused, for its rounding is the caller's to choose.
        range_max: Upper bound, like `range_min`.
        bits: Width k of the codes, from 2 to 16.
        axis: The dimension that has one range per index; None for one range in all.
        groups: Splits the channels of `axis` into so many equal runs of consecutive channels that
            share a range. None gives each channel its own.
        ste: Straight-through gradient of `x`. "identity" passes the gradient unchanged and saves
            nothing; "clip" zeroes it where `round(s * x - z)` lies outside
            `[-2^(bits - 1), 2^(bits - 1) - 1]`, that is where the forward pass clamps.

    Returns:
        The quantized values, with the shape, type and layout of `x`.

    Raises:
        TypeError: `x`, a range, `bits`, `axis` or `groups` is of another type than said above.
        ValueError: `bits` or `ste` is none of the allowed values, `groups` does not divide the
            channels or comes without `axis`, a range has the wrong length or device, or
            `range_min > range_max` (for tensors on a GPU the values are not read).
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the quantizer of ZeroQ (CVPR 2020) and GDFQ (ECCV 2020), as used by SynQ (ICLR 2025);
    straight-through estimator: Bengio et al., arXiv 1308.3432.
    """
    if has_torch_function_variadic(x, range_min, range_max):
        overriding: Tensor = overridden(fake_quantize, locals())
        return overriding
    clip = is_clipped(ste)
    low, high = to_ranges(x, range_min, range_max, axis, groups)
    arguments = (x, low, high, bits, axis, groups, clip)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, low, high, bits, axis=axis, groups=groups, ste=ste)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
