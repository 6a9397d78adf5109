"""Softmax and fake quantization over equal steps or powers of two, in one pass."""

from typing import Any, Literal

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    DTYPES,
    check_bits,
    check_gradient,
    check_range,
    check_scale,
    is_log2,
    widened,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_number
from synq_fast.reference._affine import as_range
from synq_fast.reference.softmax_fake_quantize import softmax_fake_quantize as _plain
from synq_fast.reference.softmax_fake_quantize import softmax_fake_quantize_gradients

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _check_rows(logits: object) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if logits.dtype not in DTYPES:
        raise TypeError(
            f"logits must be float32, float16 or bfloat16, got {logits.dtype}; "
            "convert them with logits.float()"
        )
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            "logits must have a last dimension that is not empty, over which probabilities are "
            f"taken, got shape {tuple(logits.shape)}"
        )


def _fake(
    logits: Tensor, scale: Tensor, bits: int, alpha: float, log2: bool, gradient_scale: float
) -> Tensor:
    check_bits(bits)
    _check_rows(logits)
    check_range("scale", scale, logits, None)
    check_number("alpha", alpha)
    return torch.empty_like(logits)


def _fake_backward(grad: Tensor, logits: Tensor, scale: Tensor, *arguments: Any) -> Pair:
    result = _fake(logits, scale, *arguments)
    check_gradient(grad, logits)
    return result, scale.new_empty(scale.shape)


def _reference(
    logits: Tensor, scale: Tensor, bits: int, alpha: float, log2: bool, gradient_scale: float
) -> Tensor:
    grid = "log2" if log2 else "uniform"
    return like(_plain(logits, scale, bits, alpha=alpha, grid=grid), logits)


def _reference_backward(
    grad: Tensor,
    logits: Tensor,
    scale: Tensor,
    bits: int,
    alpha: float,
    log2: bool,
    gradient_scale: float,
) -> Pair:
    factor = as_range(scale, logits, None)
    of_logits, of_scale = softmax_fake_quantize_gradients(
        grad, logits, factor, bits, alpha, log2, gradient_scale
    )
    return like(of_logits, logits), of_scale.reshape(scale.shape)


register(
    "softmax_fake_quantize_backward",
    "(Tensor grad, Tensor logits, Tensor scale, int bits, float alpha, bool log2, "
    "float gradient_scale) -> (Tensor of_logits, Tensor of_scale)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, logits, scale, *_: check_scale(scale),
    once="softmax_fake_quantize",
)
_op = register(
    "softmax_fake_quantize",
    "(Tensor logits, Tensor scale, int bits, float alpha, bool log2, float gradient_scale)"
    " -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=lambda logits, scale, *_: check_scale(scale),
    gradients={
        "logits, scale": "softmax_fake_quantize_backward("
        "grad, logits, scale, bits, alpha, log2, gradient_scale)"
    },
    triton_arguments=5,
)


def softmax_fake_quantize(
    logits: torch.Tensor,
    scale: torch.Tensor | float,
    bits: int,
    *,
    alpha: float = 1.0,
    gradient_scale: float = 1.0,
    grid: Literal["uniform", "log2"] = "uniform",
) -> torch.Tensor:
    """Rounds the probabilities of attention to `2^bits` levels from zero.

    In float32, over the last dimension:

        p = softmax(alpha * logits)
        y = clamp(round(scale * p), 0, 2^bits - 1) / scale

    which is `fake_quantize_learned` with the zero point `2^(bits - 1)`, and trains the step; with
    `grid="log2"` `y` is instead `fake_quantize_log` of p, whose levels are powers of two. A
    probability of zero, such as that of a masked logit of minus infinity, stays zero on both.
    Rounded rows sum to 1 only nearly; they are not normalised again.

    Probabilities are never stored: where a gradient is wanted, `logits` are saved and their rows
    are computed again. With d the gradient of p in the op that the grid is of, such as that of y
    where the clamp changes no code and zero elsewhere, that of the logits is
    `alpha * p * (d - sum(d * p))`; that of the scale is the one of that op for p. One pass over
    memory gives each direction. Sums are accumulated in float32 or better in a fixed order.

    The quantizer is exact, and backends round `p` differently, by a few units in the last place and
    of the exponent: where p lies that close to the middle between two codes (on powers of two, of
    their logarithms), one backend may choose the one and another the other. A NaN, an infinity, or
    nothing but minus infinities makes a row NaN.

    Args:
        logits: At least one dimension, the last of which is a row; float32, float16 or bfloat16.
        scale: Steps per unit of probability, or with `grid="log2"` the largest level; positive: a
            number, or a tensor with one element on the device of the logits; float32, or a half
            type, whose gradient is rounded to it. With `2^bits - 1` steps, or the level 1, the
            grid ends at 1.
        bits: Width of the codes, from 2 to 16.
        alpha: What the logits are multiplied by, such as the inverse square root of the width of a
            head; finite.
        gradient_scale: Multiplies the gradient of the scale, as in `fake_quantize_learned`.
        grid: Levels: "uniform", equal steps, or "log2", powers of two.

    Returns:
        The quantized probabilities, with the shape, type and layout of `logits`. There is no second
        derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: `bits`, `alpha` or `grid` is not allowed, or rows are empty, or the scale has
            more than one element or lies on another device or is not positive (for tensors on a GPU
            the value is not read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Attention Is All You Need (Vaswani et al., NeurIPS 2017, equation 1); for the grids,
    those of `fake_quantize_learned` and `fake_quantize_log`.
    """
    if has_torch_function_variadic(logits, scale):
        overriding: Tensor = overridden(softmax_fake_quantize, locals())
        return overriding
    _check_rows(logits)
    scale = _as_scale(scale, logits)
    arguments = (logits, scale, bits, alpha, is_log2("grid", grid), gradient_scale)
    op = _op.on(logits)
    if op is None or type(bits) is not int:
        _op.check(*arguments)
        return _plain(logits, scale, bits, alpha=alpha, gradient_scale=gradient_scale, grid=grid)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result


def _as_scale(scale: object, logits: Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        return widened(scale)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(
            "scale must be a number or a float32 tensor, or one in a half type, got "
            f"{scale!r} ({type(scale).__name__})"
        )
    # Filled on the device: a copy from the host would synchronise it.
    return torch.full((), scale, dtype=torch.float32, device=logits.device)
