"""ReLU and fake quantization in one pass, alone and after a per-channel affine map."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._checks import (
    check_bits,
    check_input,
    check_order,
    check_per_channel,
    check_range,
    check_residual,
    check_upper,
)
from synq_fast.ops._op import Op, check_gradient, differentiable_once, like
from synq_fast.reference._affine import along_axis, as_range, clipped
from synq_fast.reference.relu_fake_quantize import relu

Tensor = torch.Tensor
# Of x, weight, bias and the residual.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _before_relu(
    gradient: Tensor,
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> Tensor:
    """Returns the gradient of what goes into the ReLU; no autograd reaches below the dispatcher."""
    blocked = x <= 0
    if upper is not None:
        blocked |= x >= upper
    if clip:
        low, high = (as_range(bound, x, axis) for bound in (range_min, range_max))
        blocked |= clipped(relu(x.float(), upper), low, high, bits, axis)
    return gradient.masked_fill(blocked, 0.0)


def _fake_relu(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> Tensor:
    check_bits(bits)
    check_upper(upper)
    check_input(x, axis)
    check_range("range_min", range_min, x, axis)
    check_range("range_max", range_max, x, axis)
    return torch.empty_like(x)


def _fake_relu_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    check_gradient(grad, x)
    return _fake_relu(x, *arguments)


def _reference_relu(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> Tensor:
    _fake_relu(x, range_min, range_max, bits, axis, upper, clip)
    check_order(range_min, range_max)
    y = reference.relu_fake_quantize(x, range_min, range_max, bits, axis=axis, upper=upper)
    return like(y, x)


def _reference_relu_backward(
    grad: Tensor,
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> Tensor:
    _fake_relu_backward(grad, x, range_min, range_max, bits, axis, upper, clip)
    return like(_before_relu(grad, x, range_min, range_max, bits, axis, upper, clip), x)


def _autograd_relu(skipped: int) -> Callable[[str], tuple[Callable[..., None], Callable[..., Any]]]:
    """The gradient is linear in the incoming one: the backward op is its own derivative."""

    def autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
        def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs[skipped : skipped + 3])
            ctx.arguments = inputs[skipped + 3 :]

        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            op = getattr(torch.ops.synq_fast.relu_fake_quantize_backward, suffix)
            return op(gradient, *ctx.saved_tensors, *ctx.arguments), *[None] * (6 + skipped)

        return setup, backward

    return autograd


def _fake_affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    upper: float | None,
    clip: bool,
) -> Tensor:
    check_bits(bits)
    check_upper(upper)
    check_input(x, None)
    check_per_channel("weight", weight, x)
    check_per_channel("bias", bias, x)
    check_residual(residual, x)
    check_range("range_min", range_min, x, None)
    check_range("range_max", range_max, x, None)
    return torch.empty_like(x)


def _fake_affine_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Gradients:
    check_gradient(grad, x)
    *forward_arguments, parameters, of_residual = arguments
    result = _fake_affine(x, *forward_arguments)
    if of_residual and arguments[2] is None:
        raise ValueError("of_residual asks for the gradient of a residual, but there is none")
    count = x.shape[1] if parameters else 0
    of_weight, of_bias = (x.new_empty(count, dtype=torch.float32) for _ in range(2))
    return result, of_weight, of_bias, torch.empty_like(x) if of_residual else x.new_empty(0)


def _reference_affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    upper: float | None,
    clip: bool,
) -> Tensor:
    _fake_affine(x, weight, bias, residual, range_min, range_max, bits, upper, clip)
    check_order(range_min, range_max)
    y = reference.affine_relu_fake_quantize(
        x, weight, bias, range_min, range_max, bits, residual=residual, upper=upper
    )
    return like(y, x)


def _reference_affine_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    upper: float | None,
    clip: bool,
    parameters: bool,
    of_residual: bool,
) -> Gradients:
    arguments = weight, bias, residual, range_min, range_max, bits, upper, clip
    _fake_affine_backward(grad, x, *arguments, parameters, of_residual)
    factor = along_axis(weight, x, 1)
    value = x.float() * factor + along_axis(bias, x, 1)
    if residual is not None:
        value = value + residual.float()
    gradient = _before_relu(grad.float(), value, range_min, range_max, bits, None, upper, clip)
    of_x = like((gradient * factor).to(x.dtype), x)
    of_summand = like(gradient.to(x.dtype), x) if of_residual else x.new_empty(0)
    if not parameters:
        return of_x, weight.new_empty(0), bias.new_empty(0), of_summand
    of_weight, of_bias = (
        terms.sum_to_size(factor.shape).reshape(-1) for terms in (gradient * x.float(), gradient)
    )
    return of_x, of_weight.clone(), of_bias.clone(), of_summand


def _autograd_affine(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.arguments = inputs[6:]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        op = getattr(torch.ops.synq_fast.affine_relu_fake_quantize_backward, suffix)
        parameters = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        of_residual = ctx.needs_input_grad[3]
        of_x, of_weight, of_bias, of_summand = op(
            gradient, *ctx.saved_tensors, *ctx.arguments, parameters, of_residual
        )
        of_parameters = (of_weight, of_bias) if parameters else (None, None)
        return of_x, *of_parameters, of_summand if of_residual else None, *[None] * 5

    return setup, backward


OPS = {
    "relu_fake_quantize": Op(
        "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, float? upper, "
        "bool clip) -> Tensor",
        _fake_relu,
        _reference_relu,
        _autograd_relu(0),
        triton_arguments=6,
    ),
    "relu_fake_quantize_backward": Op(
        "(Tensor grad, Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, "
        "float? upper, bool clip) -> Tensor",
        _fake_relu_backward,
        _reference_relu_backward,
        _autograd_relu(1),
        triton_arguments=8,
    ),
    "affine_relu_fake_quantize": Op(
        "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor range_min, "
        "Tensor range_max, int bits, float? upper, bool clip) -> Tensor",
        _fake_affine,
        _reference_affine,
        _autograd_affine,
        triton_arguments=8,
    ),
    # The gradients of weight and bias are empty tensors unless `parameters` is true, that of the
    # residual unless `of_residual` is.
    "affine_relu_fake_quantize_backward": Op(
        "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor range_min, "
        "Tensor range_max, int bits, float? upper, bool clip, bool parameters, bool of_residual) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        _fake_affine_backward,
        _reference_affine_backward,
        differentiable_once("affine_relu_fake_quantize"),
        triton_arguments=12,
    ),
}
