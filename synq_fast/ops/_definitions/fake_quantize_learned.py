"""Fake quantization over a learned grid, and its three gradients."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._checks import check_bits, check_input, check_range, check_scale
from synq_fast.ops._op import Op, check_gradient, differentiable_once, like
from synq_fast.reference._affine import along_axis, as_range
from synq_fast.reference.fake_quantize_learned import learned_gradients

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]


def _fake_forward(
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
    check_gradient(grad, x)
    result = _fake_forward(x, scale, zero_point, *arguments)
    return result, scale.new_empty(scale.shape), scale.new_empty(zero_point.shape)


def _reference_forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Tensor:
    _fake_forward(x, scale, zero_point, bits, axis, gradient_scale)
    check_scale(scale)
    return like(reference.fake_quantize_learned(x, scale, zero_point, bits, axis=axis), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    axis: int | None,
    gradient_scale: float,
) -> Triple:
    _fake_backward(grad, x, scale, zero_point, bits, axis, gradient_scale)
    pair = (as_range(value, x, axis) for value in (scale, zero_point))
    factor, offset = (along_axis(value, x, axis) for value in pair)
    of_x, of_scale, of_zero = learned_gradients(grad, x, factor, offset, bits, gradient_scale)
    return like(of_x, x), of_scale.reshape(scale.shape), of_zero.reshape(zero_point.shape)


def _autograd_forward(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.arguments = inputs[3:]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        op = getattr(torch.ops.synq_fast.fake_quantize_learned_backward, suffix)
        return *op(gradient, *ctx.saved_tensors, *ctx.arguments), None, None, None

    return setup, backward


OPS = {
    "fake_quantize_learned": Op(
        "(Tensor x, Tensor scale, Tensor zero_point, int bits, int? axis, float gradient_scale)"
        " -> Tensor",
        _fake_forward,
        _reference_forward,
        _autograd_forward,
        triton_arguments=5,
    ),
    "fake_quantize_learned_backward": Op(
        "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int bits, int? axis, "
        "float gradient_scale) -> (Tensor, Tensor, Tensor)",
        _fake_backward,
        _reference_backward,
        differentiable_once("fake_quantize_learned"),
        triton_arguments=7,
    ),
}
