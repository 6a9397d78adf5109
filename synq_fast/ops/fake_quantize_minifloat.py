"""Fake quantization to small floats."""

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
from synq_fast.reference._affine import as_range
from synq_fast.reference.fake_quantize_minifloat import clipped
from synq_fast.reference.fake_quantize_minifloat import fake_quantize_minifloat as _plain

Tensor = torch.Tensor


def _fake(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    clip: bool = False,
) -> Tensor:
    check_bits(bits, 3, 8)
    check_input(x, axis)
    check_range("range_min", range_min, x, axis)
    check_range("range_max", range_max, x, axis)
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    result = _fake(x, *arguments)
    check_gradient(grad, x)
    return result


def _reference(
    x: Tensor, range_min: Tensor, range_max: Tensor, bits: int, axis: int | None, clip: bool
) -> Tensor:
    return like(_plain(x, range_min, range_max, bits, axis=axis), x)


def _reference_backward(
    grad: Tensor, x: Tensor, range_min: Tensor, range_max: Tensor, bits: int, axis: int | None
) -> Tensor:
    low, high = (as_range(bound, x, axis) for bound in (range_min, range_max))
    return like(grad.masked_fill(clipped(x, low, high, bits, axis), 0.0).to(x.dtype), x)


# The clipped gradient is linear in the incoming one with a symmetric mask: its own derivative.
register(
    "fake_quantize_minifloat_backward",
    "(Tensor grad, Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis)"
    " -> Tensor of_x",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, low, high, *_: check_order(low, high),
    gradients={
        "grad": "fake_quantize_minifloat_backward(grad_of_x, x, range_min, range_max, bits, axis)"
    },
)
_op = register(
    "fake_quantize_minifloat",
    "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, bool clip) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, low, high, *_: check_order(low, high),
    gradients={
        "x": "fake_quantize_minifloat_backward(grad, x, range_min, range_max, bits, axis)"
        " if clip else grad"
    },
    triton_arguments=5,
)


def fake_quantize_minifloat(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """Rounds `x` to `2^bits` small floats over `[range_min, range_max]`: dense below, then sparse.

    Three bits are an exponent, `m = bits - 3` a mantissa, none a sign. Of a code c, with
    `e = c >> m` and f its last m bits, the level is f where e is 0, and `(2^m + f) * 2^(e - 1)`
    elsewhere, so 4 bits have

        0 1 2 3 4 6 8 12 16 24 32 48 64 96 128 192

    and the largest level of all is `L = (2^(m + 1) - 1) * 2^6`. In float32, each operation rounded
    on its own and halves rounded to even:

        s = 1 / max(range_max - range_min, 1e-8) * L
        z = round(s * range_min)
        t = clamp(s * x - z, -1, 2 L)
        p = max(2^floor(log2(max(t, 0))) * 2^-m, 1)
        r = round(t / p) * p
        q = clamp(r, 0, L)
        y = (q + z) / s

    The levels are whole numbers, so is z: levels of up to 4 bits lie within 8-bit integers, in
    which products can be computed, while their codes are stored in fewer bits. Steps are small next
    to `range_min`, which suits a GELU, and grow with the distance from it. Zero is among the
    values where `-z` is among the levels.

    The logarithm is never computed: the power of two follows from the bits of t, and the width is
    halved before it is taken, so that a range may span more than the largest float32. Every backend
    gives the same bits. NaN in `x` or in its range gives NaN; an infinity is clamped; an empty
    tensor gives an empty one. Contiguous, channels_last and other dense layouts are read as they
    lie and kept. Under autocast the op runs in the type of `x`.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        range_min: Lower bound: a number, or a float32, float16 or bfloat16 tensor on x's device
            with one element, or `(C,)` with `axis`, where C is the size of that dimension. It
            receives no gradient. The grid is computed in float32 from it; a float64 tensor is
            refused, for its rounding is the caller's to choose.
        range_max: Upper bound, like `range_min`.
        bits: Width of the codes, from 3 to 8. With 3 there is no mantissa: the levels are zero and
            powers of two.
        axis: The dimension that has one range per index; None for one range in all.
        ste: Straight-through gradient of `x`. "identity" passes the gradient unchanged and saves
            nothing; "clip" zeroes it where `r != q`, that is where the forward pass clamps.

    Returns:
        The quantized values, with the shape, type and layout of `x`.

    Raises:
        TypeError: `x`, a range, `bits` or `axis` is of another type than said above.
        ValueError: `bits` or `ste` is none of the allowed values, a range has the wrong length or
            device, or `range_min > range_max` (for tensors on a GPU the values are not read).
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: 4-bit floats for activations of transformers: LLM-FP4 (Liu et al., EMNLP 2023, arXiv
    2310.16836); subnormal levels as in the FP8 formats (Micikevicius et al., arXiv 2209.05433),
    without their codes for NaN and infinities, and with a zero point instead of a sign.
    """
    if has_torch_function_variadic(x, range_min, range_max):
        overriding: Tensor = overridden(fake_quantize_minifloat, locals())
        return overriding
    clip = is_clipped(ste)
    low, high = to_ranges(x, range_min, range_max, axis)
    arguments = (x, low, high, bits, axis, clip)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, low, high, bits, axis=axis, ste=ste)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
