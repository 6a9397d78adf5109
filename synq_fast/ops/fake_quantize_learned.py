"""Fake quantization over a learned grid."""

from typing import Any

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
from synq_fast.ops._draws import check_keep, check_offset, check_seed, to_seed
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import along_axis, as_range
from synq_fast.reference._philox import kept
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned as _plain
from synq_fast.reference.fake_quantize_learned import learned_gradients

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Tensor:
    check_bits(bits)
    check_input(x, axis)
    check_range("scale", scale, x, axis)
    check_range("zero_point", zero_point, x, axis)
    return torch.empty_like(x)


def _fake_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, *arguments: Any
) -> Triple:
    result = _fake(x, scale, zero_point, *arguments)
    check_gradient(grad, x)
    return result, scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)


def _reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Tensor:
    return like(_plain(x, scale, zero_point, bits, axis=axis), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
    chosen: Tensor | None = None,
) -> Triple:
    pair = (as_range(value, x, axis) for value in (scale, zero_point))
    factor, offset = (along_axis(value, x, axis) for value in pair)
    of_x, of_scale, of_zero = learned_gradients(
        grad, x, factor, offset, bits, gradient_scale, chosen
    )
    return like(of_x, x), of_scale.reshape(scale.shape), of_zero.reshape(zero_point.shape)


def _fake_dropped(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    seed: Tensor,
    bits: int,
    axis: int | None,
    keep: float,
    gradient_scale: float,
    offset: int = 0,
) -> Tensor:
    y = _fake(x, scale, zero_point, bits, axis, gradient_scale)
    check_keep(keep)
    check_seed(seed, "x", x)
    check_offset(offset)
    return y


def _fake_dropped_backward(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, seed: Tensor, *arguments: Any
) -> Triple:
    result = _fake_dropped(x, scale, zero_point, seed, *arguments)
    check_gradient(grad, x)
    return result, scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)


def _reference_dropped(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    seed: Tensor,
    bits: int,
    axis: int | None,
    keep: float,
    gradient_scale: float,
    offset: int = 0,
) -> Tensor:
    y = _plain(x, scale, zero_point, bits, axis=axis, keep=keep, seed=seed, offset=offset)
    return like(y, x)


def _reference_dropped_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    seed: Tensor,
    bits: int,
    axis: int | None,
    keep: float,
    gradient_scale: float,
    offset: int = 0,
) -> Triple:
    chosen = kept(x, seed, keep, offset)
    return _reference_backward(grad, x, scale, zero_point, bits, axis, gradient_scale, chosen)


register(
    "fake_quantize_learned_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int bits, int? axis, "
    "float gradient_scale) -> (Tensor of_x, Tensor of_scale, Tensor of_zero_point)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, scale, *_: check_scale(scale),
    once="fake_quantize_learned",
)
_op = register(
    "fake_quantize_learned",
    "(Tensor x, Tensor scale, Tensor zero_point, int bits, int? axis, float gradient_scale)"
    " -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, scale, *_: check_scale(scale),
    gradients={
        "x, scale, zero_point": "fake_quantize_learned_backward("
        "grad, x, scale, zero_point, bits, axis, gradient_scale)"
    },
    triton_arguments=5,
)
# What `keep` below 1 leads to; on its own, so that other calls carry no seed.
register(
    "fake_quantize_learned_dropped_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, Tensor seed, int bits, int? axis, "
    "float keep, float gradient_scale, int offset=0) "
    "-> (Tensor of_x, Tensor of_scale, Tensor of_zero_point)",
    fake=_fake_dropped_backward,
    reference=_reference_dropped_backward,
    check_values=lambda grad, x, scale, *_: check_scale(scale),
    once="fake_quantize_learned",
)
_dropped = register(
    "fake_quantize_learned_dropped",
    "(Tensor x, Tensor scale, Tensor zero_point, Tensor seed, int bits, int? axis, float keep, "
    "float gradient_scale, int offset=0) -> Tensor",
    fake=_fake_dropped,
    reference=_reference_dropped,
    check_values=lambda x, scale, *_: check_scale(scale),
    gradients={
        "x, scale, zero_point": "fake_quantize_learned_dropped_backward("
        "grad, x, scale, zero_point, seed, bits, axis, keep, gradient_scale, offset)"
    },
)


def fake_quantize_learned(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    gradient_scale: float = 1.0,
    keep: float = 1.0,
    seed: torch.Tensor | int | None = None,
    offset: int = 0,
) -> torch.Tensor:
    """Rounds `x` to the `2^bits` levels of a grid whose scale and zero point are trained.

    In float32, each operation rounded on its own and halves rounded to even:

        z = round(zero_point)
        q = clamp(round(scale * x - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / scale

    The rounding of the zero point, like that of the codes, passes its gradient straight through.
    With g the gradient of y, and "clipped" where the clamp changes the code:

        where        x    scale (summed over a channel)   zero_point (summed over a channel)
        in range     g    g * (x - y) / scale             0
        clipped      0    g * -y / scale                  g / scale

    These are the gradients of LSQ and LSQ+ for a scale in steps per unit, the reciprocal of their
    step size. Sums are accumulated in float32 or better in a fixed order, so that they repeat bit
    for bit; values and the gradient of `x` are the same bits on every backend. A NaN in `x` counts
    as in range: it gives NaN, lets the gradient of `x` through and makes that of its scale NaN. A
    NaN scale or zero point makes the values of its channel NaN.

    With `keep` below 1 (QDrop) an element is rounded with that probability, and is else `x` itself:
    its gradient passes, and it has no part in the sums. Draws are not stored but made again for the
    gradient. They are the same on every backend: with i an element's place in the memory of
    `torch.empty_like(x)`, plus `offset`, and r the four 32-bit words of Philox 4x32-10 for the
    counter i // 4 and the key `seed`, the element is rounded where `r[i % 4] >> 8` is below
    `round(keep * 2^24)`. As they follow memory, a channels_last image has its draws at other pixels
    than a contiguous one.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        scale: Steps per unit of `x`, positive: a number, or a tensor on x's device with one
            element, or `(C,)` with `axis`, where C is the size of that dimension; float32, or a
            half type, whose gradient is rounded to it.
        zero_point: The code that stands for zero, with its sign turned; may be fractional. Like
            `scale`.
        bits: Width k of the codes, from 2 to 16.
        axis: The dimension that has one grid per index; None for one grid in all.
        gradient_scale: Multiplies the gradients of scale and zero point. LSQ uses
            `1 / sqrt(N * Qp)` for the gradient of its step size, with N the elements that share it
            and Qp the highest code.
        keep: The probability with which an element is rounded, from 0 to 1. With 1 nothing is
            drawn.
        seed: Needed for `keep` below 1: an int of 64 bits, or an int64 tensor with one element on
            x's device, which is read there, so that a recorded CUDA graph draws anew when it is
            changed between replays, and which must be the same when the gradient is computed.
        offset: Where `x` is a part of a batch, the place of its first element in the memory of the
            whole: the rows before it times the elements of a row. Contiguous and channels_last
            parts then draw what they would draw as rows of the whole. With `keep` 1 it says
            nothing.

    Returns:
        The quantized values, with the shape, type and layout of `x`. There is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: `bits`, `keep` or `offset` is not allowed, or a parameter has the wrong length
            or device, or a scale is not positive (for tensors on a GPU the values are not read), or
            `keep` is below 1 and there is no seed.
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Learned Step Size Quantization (Esser et al., ICLR 2020, equation 3); LSQ+ (Bhalgat et
    al., CVPR Workshops 2020), with the offset inside the rounding; QDrop (Wei et al., ICLR 2022).
    """
    if has_torch_function_variadic(x, scale, zero_point, seed):
        overriding: Tensor = overridden(fake_quantize_learned, locals())
        return overriding
    scale = to_range("scale", scale, x, axis)
    zero_point = to_range("zero_point", zero_point, x, axis)
    registered = _op
    arguments: tuple[Any, ...] = (x, scale, zero_point, bits, axis, gradient_scale)
    if keep != 1:
        check_keep(keep)
        seed = to_seed(seed, x.device)
        registered = _dropped
        arguments = (x, scale, zero_point, seed, bits, axis, keep, gradient_scale, offset)
    op = registered.on(x)
    if op is None or type(bits) is not int:
        registered.check(*arguments)
        return _plain(
            x, scale, zero_point, bits,
            axis=axis, gradient_scale=gradient_scale, keep=keep, seed=seed, offset=offset,
        )  # fmt: skip
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        registered.refuse(error, *arguments)
    return result
