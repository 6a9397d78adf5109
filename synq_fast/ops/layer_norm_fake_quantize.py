"""Layer normalisation and fake quantization over a learned grid, in one pass."""

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
    widened,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_number
from synq_fast.reference._affine import as_range
from synq_fast.reference.layer_norm_fake_quantize import layer_norm_fake_quantize as _plain
from synq_fast.reference.layer_norm_fake_quantize import layer_norm_fake_quantize_gradients

Tensor = torch.Tensor
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _check_rows(x: object) -> None:
    check_input(x, None)
    assert isinstance(x, Tensor)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(
            "x must have a last dimension that is not empty, over which rows are normalised, "
            f"got shape {tuple(x.shape)}"
        )


def _check_factor(name: str, value: object, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a float32 tensor, one in a half type, or None, "
            f"got {type(value).__name__}"
        )
    check_range(name, value, x, -1)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    eps: float,
    gradient_scale: float,
) -> Tensor:
    check_bits(bits)
    _check_rows(x)
    _check_factor("weight", weight, x)
    _check_factor("bias", bias, x)
    check_range("scale", scale, x, None)
    check_range("zero_point", zero_point, x, None)
    check_number("eps", eps, least=0)
    return torch.empty_like(x)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *arguments: Any,
) -> Five:
    result = _fake(x, weight, bias, scale, zero_point, *arguments)
    check_gradient(grad, x)
    of_weight, of_bias = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    of_grid = scale.new_empty(scale.shape), zero_point.new_empty(zero_point.shape)
    return result, of_weight, of_bias, *of_grid


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    eps: float,
    gradient_scale: float,
) -> Tensor:
    return like(_plain(x, weight, bias, scale, zero_point, bits, eps=eps), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    eps: float,
    gradient_scale: float,
) -> Five:
    factor, offset = (as_range(value, x, None) for value in (scale, zero_point))
    of_x, of_weight, of_bias, of_scale, of_zero = layer_norm_fake_quantize_gradients(
        grad, x, weight, bias, factor, offset, bits, eps, gradient_scale
    )
    sums = of_scale.reshape(scale.shape), of_zero.reshape(zero_point.shape)
    return like(of_x, x), of_weight, of_bias, *sums


register(
    "layer_norm_fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor scale, Tensor zero_point, "
    "int bits, float eps, float gradient_scale) -> (Tensor of_x, Tensor of_weight, "
    "Tensor of_bias, Tensor of_scale, Tensor of_zero_point)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, weight, bias, scale, *_: check_scale(scale),
    once="layer_norm_fake_quantize",
)
_op = register(
    "layer_norm_fake_quantize",
    "(Tensor x, Tensor weight, Tensor bias, Tensor scale, Tensor zero_point, int bits, "
    "float eps, float gradient_scale) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, weight, bias, scale, *_: check_scale(scale),
    gradients={
        "x, weight, bias, scale, zero_point": "layer_norm_fake_quantize_backward("
        "grad, x, weight, bias, scale, zero_point, bits, eps, gradient_scale)"
    },
    triton_arguments=7,
)


def layer_norm_fake_quantize(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | float,
    bits: int,
    *,
    eps: float = 1e-6,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """Rounds normalised rows to the `2^bits` levels of a grid that is trained.

    In float32, with the mean and the biased variance of each row of the last dimension:

        h = (x - mean) / sqrt(variance + eps)
        a = h * weight + bias
        z = round(zero_point)
        q = clamp(round(scale * a - z), -2^(bits - 1), 2^(bits - 1) - 1)
        y = (q + z) / scale

    Nothing is stored but y: where a gradient is wanted, `x` is saved and its rows are normalised
    again. With d the gradient of y where the clamp changes no code and zero elsewhere, and
    p = d * weight, the gradients are those of layer normalisation: of `x`
    `(p - mean(p) - h * mean(p * h)) / sqrt(variance + eps)`, of weight and bias the sums of d * h
    and of d over all rows; those of scale and zero point are those of `fake_quantize_learned` for
    a. One pass over memory gives each direction. Sums are accumulated in float32 or better in a
    fixed order.

    The quantizer is exact, and backends round `a` differently, by a few units in the last place of
    what it is made of: where `scale * a - z` lies that close to the middle between two codes, one
    backend may choose the one and another the other. A NaN makes its row NaN.

    Args:
        x: At least one dimension, the last of which is normalised; float32, float16 or bfloat16.
        weight: A factor for each place of a row, `(C,)`, where C is the length of a row; float32,
            or a half type, whose gradient is rounded to it. None for 1.
        bias: What is added to each place of a row. Like `weight`; None for 0.
        scale: Steps per unit of `a`, positive: a number, or a tensor with one element on x's
            device; float32, or a half type.
        zero_point: The code that stands for zero, with its sign turned; may be fractional. Like
            `scale`.
        bits: Width of the codes, from 2 to 16.
        eps: What is added to the variance.
        gradient_scale: Multiplies the gradients of scale and zero point, as in
            `fake_quantize_learned`.

    Returns:
        The quantized values, with the shape, type and layout of `x`. There is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: `bits` is not allowed, or rows are empty, or `eps` is negative, or a parameter
            has the wrong length or device, or the scale is not positive (for tensors on a GPU the
            values are not read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Layer Normalization (Ba et al., 2016); for the grid, those of `fake_quantize_learned`.
    """
    if has_torch_function_variadic(x, weight, bias, scale, zero_point):
        overriding: Tensor = overridden(layer_norm_fake_quantize, locals())
        return overriding
    _check_rows(x)
    weight = _filled(x, 1.0) if weight is None else widened(weight)
    bias = _filled(x, 0.0) if bias is None else widened(bias)
    scale = to_range("scale", scale, x, None)
    zero_point = to_range("zero_point", zero_point, x, None)
    arguments = (x, weight, bias, scale, zero_point, bits, eps, gradient_scale)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(
            x, weight, bias, scale, zero_point, bits, eps=eps, gradient_scale=gradient_scale
        )
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result


def _filled(x: Tensor, value: float) -> Tensor:
    return torch.full(x.shape[-1:], value, dtype=torch.float32, device=x.device)
