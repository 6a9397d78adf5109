"""The op behind activation functions with fake quantization, and what their files share.

A function is a line of `ACTIVATIONS`, a public function, and a value and a slope in the reference
and in each kind of kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_range,
    check_scale,
    is_minifloat,
    to_range,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._activation_fake_quantize import (
    GELU,
    HARDSWISH,
    SILU,
    activation_fake_quantize,
    activation_fake_quantize_gradients,
)
from synq_fast.reference._affine import as_range

Tensor = torch.Tensor
Triple = tuple[Tensor, Tensor, Tensor]

# In the order of csrc/activation_functions.h.
ACTIVATIONS = (GELU, SILU, HARDSWISH)


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
    y = activation_fake_quantize(ACTIVATIONS[activation], x, scale, zero_point, bits, grid=grid)
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
    of_x, of_scale, of_zero = activation_fake_quantize_gradients(
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
    public: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    activation: Any,
    given: dict[str, Any],
) -> Tensor:
    """Calls the op, or the reference, on what a public function was given, its `locals()`."""
    x, scale, zero_point, bits, gradient_scale, grid = given.values()
    if has_torch_function_variadic(x, scale, zero_point):
        overriding: Tensor = overridden(public, given)
        return overriding
    minifloat = is_minifloat(grid)
    scale = to_range("scale", scale, x, None)
    zero_point = to_range("zero_point", zero_point, x, None)
    function = ACTIVATIONS.index(activation)
    arguments = (x, scale, zero_point, function, bits, minifloat, gradient_scale)
    op = _op.on(x)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return plain(x, scale, zero_point, bits, gradient_scale=gradient_scale, grid=grid)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
