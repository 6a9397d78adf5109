"""A folded BatchNorm, a residual, ReLU and fake quantization in one pass."""

from typing import Any

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_order,
    check_per_channel,
    check_range,
    check_residual,
    check_upper,
    is_clipped,
    to_ranges,
    widened,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops.relu_fake_quantize import before_relu
from synq_fast.reference._affine import along_axis
from synq_fast.reference.affine_relu_fake_quantize import affine_relu_fake_quantize as _plain

Tensor = torch.Tensor
# Of x, weight, bias and the residual.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _fake(
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


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Gradients:
    *forward_arguments, parameters, of_residual = arguments
    result = _fake(x, *forward_arguments)
    check_gradient(grad, x)
    if of_residual and arguments[2] is None:
        raise ValueError("of_residual asks for the gradient of a residual, but there is none")
    count = x.shape[1] if parameters else 0
    of_weight, of_bias = (x.new_empty(count, dtype=torch.float32) for _ in range(2))
    return result, of_weight, of_bias, torch.empty_like(x) if of_residual else x.new_empty(0)


def _reference(
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
    y = _plain(x, weight, bias, range_min, range_max, bits, residual=residual, upper=upper)
    return like(y, x)


def _reference_backward(
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
    factor = along_axis(weight, x, 1)
    value = x.float() * factor + along_axis(bias, x, 1)
    if residual is not None:
        value = value + residual.float()
    gradient = before_relu(grad.float(), value, range_min, range_max, bits, None, upper, clip)
    of_x = like((gradient * factor).to(x.dtype), x)
    of_summand = like(gradient.to(x.dtype), x) if of_residual else x.new_empty(0)
    if not parameters:
        return of_x, weight.new_empty(0), bias.new_empty(0), of_summand
    of_weight, of_bias = (
        terms.sum_to_size(factor.shape).reshape(-1) for terms in (gradient * x.float(), gradient)
    )
    return of_x, of_weight.clone(), of_bias.clone(), of_summand


# The gradients of weight and bias are empty tensors unless `parameters` is true, that of the
# residual unless `of_residual` is.
register(
    "affine_relu_fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor range_min, "
    "Tensor range_max, int bits, float? upper, bool clip, bool parameters, bool of_residual) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, weight, bias, residual, low, high, *_: check_order(low, high),
    once="affine_relu_fake_quantize",
)
_op = register(
    "affine_relu_fake_quantize",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor range_min, "
    "Tensor range_max, int bits, float? upper, bool clip) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, weight, bias, residual, low, high, *_: check_order(low, high),
    gradients={
        "x, weight, bias, residual": "affine_relu_fake_quantize_backward("
        "grad, x, weight, bias, residual, range_min, range_max, bits, upper, clip, "
        "needs(weight) or needs(bias), needs(residual))"
    },
    triton_arguments=8,
)


def affine_relu_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    residual: torch.Tensor | None = None,
    upper: float | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """`fake_quantize(relu(x * weight + bias + residual))` in one read of each and one write.

    In evaluation mode a BatchNorm is such an affine map, with `weight = gamma / sqrt(running_var +
    eps)` and `bias = beta - running_mean * weight`. The product and each sum are rounded to float32
    one after the other, so every backend gives the bits of the ops in a row. NaN gives NaN.

    Args:
        x: `(N, C, ...)`; float32, float16 or bfloat16.
        weight: Factor of each channel, `(C,)`, float32 or a half type, on x's device.
        bias: Summand of each channel, like `weight`.
        range_min: Lower bound, as in `fake_quantize`: a number, or a tensor with one element. It
            receives no gradient.
        range_max: Upper bound, like `range_min`.
        bits: Width of the codes, from 2 to 16.
        residual: What is added before the activation, as at the end of a residual block, with the
            shape, type and device of `x`, or None. It is copied if its layout is another than that
            of `x`.
        upper: Clamps the activation from above, 6 for ReLU6; None for a plain ReLU.
        ste: Straight-through gradient of the quantizer, as in `fake_quantize`. The gradient is zero
            where the ReLU receives a value that is at most 0 or at least `upper`, and with
            "clip" where the quantizer clamps. The sums for `weight` and `bias` are accumulated in
            float32 or better in a fixed order.

    Returns:
        The quantized activations, with the shape, type and layout of `x`. There is no second
        derivative.

    Raises:
        TypeError: `x`, a factor, the residual, a range, `bits` or `upper` is of another type than
            said above.
        ValueError: `x` has no dimension 1, `bits` or `ste` is none of the allowed values, `upper`
            is not positive and finite, a factor, the residual or a range has the wrong shape or
            device, or `range_min > range_max` (for tensors on a GPU the values are not read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Batch Normalization (Ioffe and Szegedy, ICML 2015), inference with the statistics
    folded; the quantizer is that of `fake_quantize`.
    """
    if has_torch_function_variadic(x, weight, bias, range_min, range_max, residual):
        overriding: Tensor = overridden(affine_relu_fake_quantize, locals())
        return overriding
    clip = is_clipped(ste)
    weight, bias = widened(weight), widened(bias)
    low, high = to_ranges(x, range_min, range_max, None)
    arguments = (x, weight, bias, residual, low, high, bits, upper, clip)
    op = _op.on(x)
    if op is None or type(bits) is not int or type(upper) is bool:
        _op.check(*arguments)
        return _plain(x, weight, bias, low, high, bits, residual=residual, upper=upper, ste=ste)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
