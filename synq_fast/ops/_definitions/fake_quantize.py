"""Fake quantization with a given and with the tensor's own range, and integer codes."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._checks import check_bits, check_input, check_order, check_range
from synq_fast.ops._op import Op, check_gradient, like
from synq_fast.reference._affine import as_range, clipped, range_shape

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake_like(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
    *_: bool,
) -> Tensor:
    check_bits(bits)
    check_input(x, axis, groups)
    check_range("range_min", range_min, x, axis, groups)
    check_range("range_max", range_max, x, axis, groups)
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    check_gradient(grad, x)
    return _fake_like(x, *arguments)


def _fake_dynamic(
    x: Tensor, bits: int, axis: int | None, groups: int | None, symmetric: bool, clip: bool
) -> Triple:
    check_bits(bits)
    check_input(x, axis, groups)
    shape = range_shape(x, axis, groups)
    low, high = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), low, high


def _fake_codes(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> Triple:
    _fake_like(x, range_min, range_max, bits, axis, groups)
    codes = torch.empty_like(x, dtype=torch.int8 if bits <= 8 else torch.int16)
    shape = range_shape(x, axis, groups)
    scale, zero_point = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return codes, scale, zero_point


def _reference_forward(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
    clip: bool,
) -> Tensor:
    _fake_like(x, range_min, range_max, bits, axis, groups)
    check_order(range_min, range_max)
    y = reference.fake_quantize(x, range_min, range_max, bits, axis=axis, groups=groups)
    return like(y, x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> Tensor:
    _fake_backward(grad, x, range_min, range_max, bits, axis, groups)
    low, high = (as_range(bound, x, axis, groups) for bound in (range_min, range_max))
    return like(grad.masked_fill(clipped(x, low, high, bits, axis), 0.0).to(x.dtype), x)


def _reference_dynamic(
    x: Tensor, bits: int, axis: int | None, groups: int | None, symmetric: bool, clip: bool
) -> Triple:
    check_bits(bits)
    check_input(x, axis, groups)
    y, range_min, range_max = reference.fake_quantize_dynamic(
        x, bits, axis=axis, groups=groups, symmetric=symmetric
    )
    return like(y, x), range_min, range_max


def _reference_codes(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    groups: int | None,
) -> Triple:
    _fake_like(x, range_min, range_max, bits, axis, groups)
    check_order(range_min, range_max)
    codes, scale, zero_point = reference.quantize_codes(
        x, range_min, range_max, bits, axis=axis, groups=groups
    )
    return like(codes, x), scale, zero_point


def _save(ctx: Any, x: Tensor, low: Tensor, high: Tensor, *arguments: int | None) -> None:
    ctx.save_for_backward(x, low, high)
    ctx.arguments = arguments


def _straight_through(ctx: Any, gradient: Tensor, suffix: str) -> Tensor:
    if not ctx.saved_tensors:
        return gradient
    op = getattr(torch.ops.synq_fast.fake_quantize_backward, suffix)
    result: Tensor = op(gradient, *ctx.saved_tensors, *ctx.arguments)
    return result


def _autograd_forward(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *arguments, clip = inputs
        if clip:
            _save(ctx, *arguments)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _straight_through(ctx, gradient, suffix), *[None] * 6

    return setup, backward


def _autograd_backward(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs[1:])

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _straight_through(ctx, gradient, suffix), *[None] * 6

    return setup, backward


def _autograd_dynamic(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        x, bits, axis, groups, _, clip = inputs
        ctx.mark_non_differentiable(output[1], output[2])
        if clip:
            _save(ctx, x, output[1], output[2], bits, axis, groups)

    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return _straight_through(ctx, gradient, suffix), *[None] * 5

    return setup, backward


def _autograd_codes(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        ctx.mark_non_differentiable(*output)

    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        return (None,) * 6

    return setup, backward


OPS = {
    "fake_quantize": Op(
        "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, int? groups, "
        "bool clip) -> Tensor",
        _fake_like,
        _reference_forward,
        _autograd_forward,
        triton_arguments=6,
    ),
    "fake_quantize_backward": Op(
        "(Tensor grad, Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, "
        "int? groups) -> Tensor",
        _fake_backward,
        _reference_backward,
        _autograd_backward,
        triton_arguments=7,
    ),
    "fake_quantize_dynamic": Op(
        "(Tensor x, int bits, int? axis, int? groups, bool symmetric, bool clip)"
        " -> (Tensor, Tensor, Tensor)",
        _fake_dynamic,
        _reference_dynamic,
        _autograd_dynamic,
        triton_arguments=5,
    ),
    "quantize_codes": Op(
        "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, int? groups)"
        " -> (Tensor, Tensor, Tensor)",
        _fake_codes,
        _reference_codes,
        _autograd_codes,
        triton_arguments=6,
    ),
}
