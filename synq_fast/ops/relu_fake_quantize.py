"""ReLU and fake quantization in one pass."""

from typing import Any

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    check_bits,
    check_gradient,
    check_input,
    check_order,
    check_range,
    check_upper,
    is_clipped,
    to_ranges,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.reference._affine import as_range, clipped
from synq_fast.reference.relu_fake_quantize import relu
from synq_fast.reference.relu_fake_quantize import relu_fake_quantize as _plain

Tensor = torch.Tensor


def _fake(
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


def _fake_backward(grad: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    result = _fake(x, *arguments)
    check_gradient(grad, x)
    return result


def before_relu(
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


def _reference(
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> Tensor:
    return like(_plain(x, range_min, range_max, bits, axis=axis, upper=upper), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    range_min: Tensor,
    range_max: Tensor,
    bits: int,
    axis: int | None,
    upper: float | None,
    clip: bool,
) -> Tensor:
    return like(before_relu(grad, x, range_min, range_max, bits, axis, upper, clip), x)


# Linear in the incoming gradient with a symmetric mask, so it is its own derivative.
register(
    "relu_fake_quantize_backward",
    "(Tensor grad, Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, "
    "float? upper, bool clip) -> Tensor of_x",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, x, low, high, *_: check_order(low, high),
    gradients={
        "grad": "relu_fake_quantize_backward("
        "grad_of_x, x, range_min, range_max, bits, axis, upper, clip)"
    },
)
_op = register(
    "relu_fake_quantize",
    "(Tensor x, Tensor range_min, Tensor range_max, int bits, int? axis, float? upper, bool clip)"
    " -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda x, low, high, *_: check_order(low, high),
    gradients={
        "x": "relu_fake_quantize_backward(grad, x, range_min, range_max, bits, axis, upper, clip)"
    },
    triton_arguments=6,
)


def relu_fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    upper: float | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """`fake_quantize(relu(x))` in one read and one write.

    Every backend gives the bits of the two ops in a row. NaN gives NaN.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        range_min: Lower bound, as in `fake_quantize`: a number, or a tensor with one element, or
            `(C,)` with `axis`. It receives no gradient.
        range_max: Upper bound, like `range_min`.
        bits: Width of the codes, from 2 to 16.
        axis: The dimension that has one range per index; None for one range in all.
        upper: Clamps the activation from above, 6 for ReLU6; None for a plain ReLU.
        ste: Straight-through gradient of the quantizer, as in `fake_quantize`. The gradient is zero
            where `x <= 0` or `x >= upper`, and with "clip" where the quantizer clamps.

    Returns:
        The quantized activations, with the shape, type and layout of `x`.

    Raises:
        TypeError: `x`, a range, `bits`, `axis` or `upper` is of another type than said above.
        ValueError: `bits` or `ste` is none of the allowed values, `upper` is not positive and
            finite, a range has the wrong length or device, or `range_min > range_max` (for tensors
            on a GPU the values are not read).
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the activation quantizers of SynQ (ICLR 2025) sit behind each ReLU; ReLU6: MobileNetV2
    (Sandler et al., CVPR 2018).
    """
    if has_torch_function_variadic(x, range_min, range_max):
        overriding: Tensor = overridden(relu_fake_quantize, locals())
        return overriding
    clip = is_clipped(ste)
    low, high = to_ranges(x, range_min, range_max, axis)
    arguments = (x, low, high, bits, axis, upper, clip)
    op = _op.on(x)
    if op is None or type(bits) is not int or type(upper) is bool:
        _op.check(*arguments)
        return _plain(x, low, high, bits, axis=axis, upper=upper, ste=ste)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
