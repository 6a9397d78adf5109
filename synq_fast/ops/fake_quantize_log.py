"""Fake quantization over a logarithmic grid."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_range,
    check_scale,
    to_range,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import along_axis, as_range
from synq_fast.reference.fake_quantize_log import fake_quantize_log as _plain
from synq_fast.reference.fake_quantize_log import log_gradients

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _fake(x: Tensor, scale: Tensor, bits: int, axis: int | None) -> Tensor:
    check_bits(bits)
    check_input(x, axis)
    check_range("scale", scale, x, axis)
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, scale: Tensor, bits: int, axis: int | None) -> Pair:
    result = _fake(x, scale, bits, axis)
    check_gradient(grad, x)
    return result, scale.new_empty(scale.shape)


def _reference(x: Tensor, scale: Tensor, bits: int, axis: int | None) -> Tensor:
    return like(_plain(x, scale, bits, axis=axis), x)


def _reference_backward(
    grad: Tensor, x: Tensor, scale: Tensor, bits: int, axis: int | None
) -> Pair:
    along = along_axis(as_range(scale, x, axis), x, axis)
    of_x, of_scale = log_gradients(grad, x, along, bits)
    return like(of_x, x), of_scale.reshape(scale.shape)


register(
    "fake_quantize_log_backward",
    "(Tensor grad, Tensor x, Tensor scale, int bits, int? axis) -> (Tensor of_x, Tensor of_scale)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, scale, *_: check_scale(scale),
    once="fake_quantize_log",
)
_op = register(
    "fake_quantize_log",
    "(Tensor x, Tensor scale, int bits, int? axis) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, scale, *_: check_scale(scale),
    gradients={"x, scale": "fake_quantize_log_backward(grad, x, scale, bits, axis)"},
)


def fake_quantize_log(
    x: torch.Tensor, scale: torch.Tensor | float, bits: int, *, axis: int | None = None
) -> torch.Tensor:
    """Rounds to the levels `scale * 2^-c`, and what is less than half the least of them to zero.

    In float32, each operation rounded on its own:

        r = min(x / scale, 1)
        c = round(-log2(r))
        y = scale * 2^-c    where c <= 2^bits - 2, else 0

    The last of the `2^bits` codes is zero. The logarithm is never computed: `c` follows from the
    bits of `r`, whose mantissa is above the square root of 2 or below it, so that every backend
    gives the same bits. A level lies in float32 exactly unless it is subnormal.

    Zero, negative values, minus infinity and ratios below 2^-126, the subnormal ones, give zero,
    without a sign; values above the scale and infinity give the scale. NaN gives NaN. No level is
    below `2^-126 * scale`: from 7 bits on no more levels are used.

    With g the gradient of y, that of `x` is `g * y / x`, straight through in the logarithm, and
    zero where y is zero or `x > scale`; that of the scale is the sum of g where `x > scale`. Where
    `x` is NaN, its gradient is NaN. Sums are accumulated in float32 or better in a fixed order.

    Args:
        x: Any shape, meant for what is never negative, as probabilities; float32, float16 or
            bfloat16.
        scale: The largest level, positive: a number, or a tensor on x's device with one element, or
            with one for each channel along `axis`; float32, or a half type, whose gradient is
            rounded to it. 1 suits a softmax.
        bits: Width of the codes, from 2 to 16.
        axis: Dimension with a scale for each index; None has one for the tensor.

    Returns:
        The quantized values, with the shape, type and layout of `x`. There is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        IndexError: `axis` is not a dimension of `x`.
        ValueError: `bits` is not allowed, or the scale has another number of elements, lies on
            another device or is not positive (for tensors on a GPU the values are not read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the log2 quantizer of attention in FQ-ViT (Lin et al., IJCAI 2022), with a code for
    zero.
    """
    if has_torch_function_variadic(x, scale):
        overriding: Tensor = overridden(fake_quantize_log, locals())
        return overriding
    scale = to_range("scale", scale, x, axis)
    arguments = (x, scale, bits, axis)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(x, scale, bits, axis=axis)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
