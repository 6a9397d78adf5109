"""The op behind activation functions with fake quantization, and what their files share.

A function is a line of `ACTIVATIONS`, a public function, and a value and a slope in the reference
and in each kind of kernel.
"""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_range,
    check_scale,
    is_minifloat,
    to_range,
)
from synq_fast.ops._registry import like, register
from synq_fast.reference import _activation_fake_quantize as reference
from synq_fast.reference._affine import as_range

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]

# In the order of csrc/activation_functions.h.
ACTIVATIONS = (reference.GELU, reference.SILU, reference.HARDSWISH)
GELU, SILU, HARDSWISH = range(len(ACTIVATIONS))


def _fake(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    activation: int,
    bits: int,
    minifloat: bool,
    gradient_scale: float,
) -> Tensor:
    check_bits(bits, *((3, 8) if minifloat else ()))
    check_input(x, None)
    check_range("scale", scale, x, None)
    check_range("zero_point", zero_point, x, None)
    if not 0 <= activation < len(ACTIVATIONS):
        raise ValueError(f"activation must be below {len(ACTIVATIONS)}, got {activation}")
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
    activation: int,
    bits: int,
    minifloat: bool,
    gradient_scale: float,
) -> Tensor:
    grid = "minifloat" if minifloat else "uniform"
    function = ACTIVATIONS[activation]
    y = reference.activation_fake_quantize(function, x, scale, zero_point, bits, grid=grid)
    return like(y, x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    activation: int,
    bits: int,
    minifloat: bool,
    gradient_scale: float,
) -> Triple:
    factor, offset = (as_range(value, x, None) for value in (scale, zero_point))
    of_x, of_scale, of_zero = reference.activation_fake_quantize_gradients(
        ACTIVATIONS[activation], grad, x, factor, offset, bits, minifloat, gradient_scale
    )
    return like(of_x, x), of_scale.reshape(scale.shape), of_zero.reshape(zero_point.shape)


register(
    "activation_fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int activation, int bits, "
    "bool minifloat, float gradient_scale)"
    " -> (Tensor of_x, Tensor of_scale, Tensor of_zero_point)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, scale, *_: check_scale(scale),
    once="an activation function with fake quantization",
)
_op = register(
    "activation_fake_quantize",
    "(Tensor x, Tensor scale, Tensor zero_point, int activation, int bits, bool minifloat, "
    "float gradient_scale) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, scale, *_: check_scale(scale),
    gradients={
        "x, scale, zero_point": "activation_fake_quantize_backward("
        "grad, x, scale, zero_point, activation, bits, minifloat, gradient_scale)"
    },
    triton_arguments=6,
)


def compute(
    plain: Callable[..., Tensor],
    activation: int,
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | float,
    bits: int,
    gradient_scale: float,
    grid: str,
) -> Tensor:
    """Calls the op, or the reference, on the arguments of a public function."""
    minifloat = is_minifloat(grid)
    scale = to_range("scale", scale, x, None)
    zero_point = to_range("zero_point", zero_point, x, None)
    arguments = (x, scale, zero_point, activation, bits, minifloat, gradient_scale)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return plain(x, scale, zero_point, bits, gradient_scale=gradient_scale, grid=grid)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
