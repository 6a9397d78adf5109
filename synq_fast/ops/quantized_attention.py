"""Attention whose operands and probabilities are on grids, without storing a product."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._checks import (
    DTYPES,
    check_bits,
    check_gradient,
    check_scale,
    is_log2,
    widened,
)
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_number
from synq_fast.reference.quantized_attention import (
    per_operand,
    quantized_attention_gradients,
)
from synq_fast.reference.quantized_attention import quantized_attention as _plain

Tensor = torch.Tensor
GRIDS = ("q_scale", "q_zero_point", "k_scale", "k_zero_point", "v_scale", "v_zero_point", "p_scale")


def _check_operands(q: object, k: object, v: object) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(
                f"{name} must be float32, float16 or bfloat16, got {x.dtype}; "
                f"convert it with {name}.float()"
            )
        if x.ndim != 4:
            raise ValueError(
                f"{name} must have shape (B, H, tokens, d), got {tuple(x.shape)}; "
                "without a dimension of heads, insert one with .unsqueeze(1)"
            )
    assert isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v must have one type, got {q.dtype}, {k.dtype} and {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(
            f"q, k and v must be on one device, got {q.device}, {k.device} and {v.device}"
        )
    expected = (*q.shape[:2], k.shape[2], q.shape[3])
    if k.shape != expected or v.shape != expected:
        raise ValueError(
            "k and v must have the batch, heads and width of q, (B, H, M, d) beside (B, H, N, d), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if 0 in expected[1:]:
        raise ValueError(
            f"heads, keys and their width must not be none, got k of shape {tuple(k.shape)}"
        )


def _check_grids(q: Tensor, grids: Sequence[Tensor]) -> None:
    heads = q.shape[1]
    for name, value in zip(GRIDS, grids, strict=True):
        if value.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {value.dtype}; convert it with .float()")
        if value.device != q.device:
            raise ValueError(
                f"{name} is on {value.device} but q is on {q.device}; move it with .to(q.device)"
            )
        if value.numel() != 1 and value.shape != (heads,):
            raise ValueError(
                f"{name} must hold one value, or one for each of the {heads} heads, "
                f"got shape {tuple(value.shape)}"
            )
    for place in (0, 2, 4):
        if grids[place].numel() != grids[place + 1].numel():
            raise ValueError(
                f"{GRIDS[place]} and {GRIDS[place + 1]} must be of one length, got "
                f"{grids[place].numel()} and {grids[place + 1].numel()} values"
            )


def _check_summands(q: Tensor, k: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    batch, heads, rows, columns = *q.shape[:3], k.shape[2]
    for name, value in (("bias", bias), ("mask", mask)):
        if value is None:
            continue
        if value.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {value.dtype}; convert it with .float()")
        if value.device != q.device:
            raise ValueError(
                f"{name} is on {value.device} but q is on {q.device}; move it with .to(q.device)"
            )
    if bias is not None and bias.shape != (heads, rows, columns):
        raise ValueError(
            f"bias must have shape (H, N, M) = {(heads, rows, columns)}, got {tuple(bias.shape)}"
        )
    if mask is not None and (mask.ndim != 3 or mask.shape[1:] != (rows, columns)):
        raise ValueError(
            f"mask must have shape (W, N, M) with (N, M) = {(rows, columns)}, "
            f"got {tuple(mask.shape)}"
        )
    if mask is not None and (mask.shape[0] == 0 or batch % mask.shape[0] != 0):
        raise ValueError(
            f"the batch must be a multiple of the masks, got {batch} images and "
            f"{mask.shape[0]} masks"
        )


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scale: Tensor,
    q_zero_point: Tensor,
    k_scale: Tensor,
    k_zero_point: Tensor,
    v_scale: Tensor,
    v_zero_point: Tensor,
    p_scale: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    bits: Sequence[int],
    alpha: float,
    log2: bool,
    gradient_scales: Sequence[float],
) -> Tensor:
    for name, values in (("bits", bits), ("gradient_scale", gradient_scales)):
        if len(values) != 4:
            raise ValueError(
                f"{name} must be one number, or four for q, k, v and p, got {len(values)}"
            )
    for width in bits:
        check_bits(width)
    _check_operands(q, k, v)
    grids = q_scale, q_zero_point, k_scale, k_zero_point, v_scale, v_zero_point, p_scale
    _check_grids(q, grids)
    _check_summands(q, k, bias, mask)
    check_number("alpha", alpha)
    return torch.empty_like(q)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Any:
    *given, of_bias = arguments
    result = _fake(q, k, v, *given)
    check_gradient(grad, q)
    grids = [value.new_empty(value.shape) for value in given[:7]]
    size = given[7].shape if of_bias else (0,)
    bias = q.new_empty(size, dtype=torch.float32)
    return result, torch.empty_like(k), torch.empty_like(v), *grids, bias


def _reference(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    bias, mask, bits, alpha, log2, _ = arguments[7:]
    given = dict(zip(GRIDS, arguments, strict=False))
    grid = "log2" if log2 else "uniform"
    y = _plain(q, k, v, **given, bits=bits, alpha=alpha, bias=bias, mask=mask, p_grid=grid)
    return like(y, q)


def _reference_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Any:
    *given, bias, mask, bits, alpha, log2, gradient_scales, of_bias = arguments
    found, summed = quantized_attention_gradients(
        grad, (q, k, v), given, bias, mask, bits, alpha, log2, gradient_scales
    )
    operands = [like(part[0], x) for part, x in zip(found, (q, k, v), strict=False)]
    grids = [value for part in found for value in part[1:]][: len(GRIDS)]
    shaped = [value.reshape(one.shape) for value, one in zip(grids, given, strict=True)]
    return *operands, *shaped, summed if of_bias else q.new_empty(0, dtype=torch.float32)


def _check_values(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> None:
    for scale in arguments[:7:2]:
        check_scale(scale)


# The gradient of the bias is empty unless `of_bias` is true.
register(
    "quantized_attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor q_scale, Tensor q_zero_point, "
    "Tensor k_scale, Tensor k_zero_point, Tensor v_scale, Tensor v_zero_point, Tensor p_scale, "
    "Tensor? bias, Tensor? mask, int[] bits, float alpha, bool log2, float[] gradient_scales, "
    "bool of_bias) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_q_scale, "
    "Tensor grad_q_zero_point, Tensor grad_k_scale, Tensor grad_k_zero_point, "
    "Tensor grad_v_scale, Tensor grad_v_zero_point, Tensor grad_p_scale, Tensor grad_bias)",
    fake=_fake_backward,
    reference=_reference_backward,
    check_values=lambda grad, *arguments: _check_values(*arguments),
    once="quantized_attention",
)
_op = register(
    "quantized_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor q_scale, Tensor q_zero_point, Tensor k_scale, "
    "Tensor k_zero_point, Tensor v_scale, Tensor v_zero_point, Tensor p_scale, Tensor? bias, "
    "Tensor? mask, int[] bits, float alpha, bool log2, float[] gradient_scales) -> Tensor",
    fake=_fake,
    reference=_reference,
    check_values=_check_values,
    gradients={
        "q, k, v, q_scale, q_zero_point, k_scale, k_zero_point, v_scale, v_zero_point, p_scale, "
        "bias": "quantized_attention_backward(grad, q, k, v, q_scale, q_zero_point, k_scale, "
        "k_zero_point, v_scale, v_zero_point, p_scale, bias, mask, bits, alpha, log2, "
        "gradient_scales, needs(bias))"
    },
    triton_arguments=15,
)


def quantized_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_scale: torch.Tensor | float,
    q_zero_point: torch.Tensor | float,
    k_scale: torch.Tensor | float,
    k_zero_point: torch.Tensor | float,
    v_scale: torch.Tensor | float,
    v_zero_point: torch.Tensor | float,
    p_scale: torch.Tensor | float,
    bits: int | Sequence[int],
    *,
    alpha: float = 1.0,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    gradient_scale: float | Sequence[float] = 1.0,
    p_grid: Literal["uniform", "log2"] = "uniform",
) -> torch.Tensor:
    """Attention with queries, keys, values and probabilities on trained grids, in one op.

    In float32, with fq the quantizer of `fake_quantize_learned`:

        p = softmax(alpha * fq(q) @ fq(k)^T + bias + mask)      over the keys
        y = fq(p) @ fq(v)

    where the grid of p begins at zero, as in `softmax_fake_quantize`: what is masked stays zero.
    With `p_grid="log2"` p is rounded as `fake_quantize_log` does it, to powers of two. Neither
    products nor probabilities are stored: q, k and v are saved, and the rest is computed again for
    the gradients. Those are the ones of the ops in a row: straight through each rounding to q, k, v
    and p where the clamp changes no code, with the terms of `fake_quantize_learned` for the scales
    and zero points (of `fake_quantize_log` for powers of two); that of the bias is summed over the
    batch.

    Codes of q, k and v are exact. Products are computed on codes, or on powers of two, and scaled
    afterwards. The float32 sums of products of codes are exact as long as they stay below 2^24;
    otherwise sums are accumulated in float32 or better, in a fixed order. Backends round `p`
    differently, by a few units in the last place and of the exponent: where p lies that close to
    the middle between two codes (on powers of two, of their logarithms), one backend may choose the
    one and another the other. A row whose logits hold a NaN, or nothing but minus infinities, is
    NaN.

    Args:
        q: Queries `(B, H, N, d)`; float32, float16 or bfloat16. A view of a joint projection is
            read where it lies, as long as the elements of a row follow each other.
        k: Keys `(B, H, M, d)`, of the type of `q`.
        v: Values, with the shape and type of `k`.
        q_scale: Steps per unit of `q`, positive: a number, or a tensor with one element or one for
            each head `(H,)` on the device of `q`; float32, or a half type, whose gradient is
            rounded to it.
        q_zero_point: The code that stands for zero, with its sign turned; may be fractional. As
            many as there are scales.
        k_scale: Of `k`, like `q_scale`.
        k_zero_point: Like `q_zero_point`.
        v_scale: Of `v`, like `q_scale`.
        v_zero_point: Like `q_zero_point`.
        p_scale: Steps per unit of probability, like `q_scale`; `2^bits - 1` ends the grid at 1.
            With `p_grid="log2"` the largest level; 1 suits.
        bits: Width of the codes, from 2 to 16: of all four, or of q, k, v and p.
        alpha: What products are multiplied by, such as `d ** -0.5`; finite.
        bias: Summands of the logits that broadcast to `(H, N, M)`, such as those of relative
            positions; minus infinity masks.
        mask: `(N, M)`, or `(W, N, M)` where W divides B: image b has mask `b % W`, as the shifted
            windows of a Swin have. Summands of the logits; of bools, true keeps a key. It receives
            no gradient.
        gradient_scale: Multiplies the gradients of scale and zero point, as in
            `fake_quantize_learned`: of all four grids, or of q, k, v and p.
        p_grid: Levels of probabilities: "uniform", equal steps, or "log2", powers of two.

    Returns:
        The attention's output, with the shape, type and layout of `q`: a view of a joint projection
        gives one that can be joined over the heads without a copy. There is no second derivative.

    Raises:
        TypeError: An argument is of another type than said above.
        ValueError: Shapes or devices do not fit, or `bits`, `alpha` or `p_grid` is not allowed, or
            there are no keys, or a scale is not positive (for tensors on a GPU the values are not
            read).
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Attention Is All You Need (Vaswani et al., NeurIPS 2017, equation 1); for the grids,
    those of `fake_quantize_learned` and `fake_quantize_log`. That nothing is stored and rows are
    computed again: FlashAttention (Dao et al., NeurIPS 2022), here without its running softmax,
    because probabilities are rounded after they are normalised.
    """
    given = (
        q_scale, q_zero_point, k_scale, k_zero_point, v_scale, v_zero_point, p_scale,
    )  # fmt: skip
    if has_torch_function_variadic(q, k, v, *given, bias, mask):
        overriding: Tensor = overridden(quantized_attention, locals())
        return overriding
    _check_operands(q, k, v)
    grids = _as_grids(q, given)
    if bias is not None:
        bias = _broadcast("bias", bias, q, k)
    if mask is not None:
        mask = _as_summands(mask)
    widths, factors = per_operand(bits), [float(x) for x in per_operand(gradient_scale)]
    arguments = (q, k, v, *grids, bias, mask, widths, alpha, is_log2("p_grid", p_grid), factors)
    op = _op.on(q)
    if op is None or any(type(width) is not int for width in widths):
        _op.check(*arguments)
        named: Any = dict(zip(GRIDS, grids, strict=True))
        return _plain(
            q, k, v, **named, bits=widths, alpha=alpha, bias=bias, mask=mask,
            gradient_scale=factors, p_grid=p_grid,
        )  # fmt: skip
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result


def _as_grids(q: Tensor, given: Sequence[object]) -> list[Tensor]:
    """Returns scales and zero points as tensors; a number is as long as what it pairs with."""
    grids: list[Any] = []
    for place, (name, value) in enumerate(zip(GRIDS, given, strict=True)):
        if isinstance(value, Tensor):
            grids.append(widened(value))
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"{name} must be a number or a float32 tensor, or one in a half type, got "
                f"{value!r} ({type(value).__name__})"
            )
        else:
            other = given[place ^ 1] if place < 6 else None
            shape = other.shape if isinstance(other, Tensor) else ()
            # Filled on the device: a copy from the host would synchronise it.
            grids.append(torch.full(shape, value, dtype=torch.float32, device=q.device))
    return grids


def _broadcast(name: str, value: object, q: Tensor, k: Tensor) -> Tensor:
    """Returns summands of the logits for every head."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(value).__name__}")
    value = widened(value)
    if value.ndim == 4 and value.shape[0] == 1:
        value = value[0]
    shape = (q.shape[1], q.shape[2], k.shape[2])
    fits = value.ndim <= 3 and all(
        mine in (1, size)
        for mine, size in zip(reversed(value.shape), reversed(shape), strict=False)
    )
    return value.expand(shape) if fits else value


def _as_summands(mask: object) -> Tensor:
    """Returns masks `(W, N, M)` that are added."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    mask = widened(mask)
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    return mask[None] if mask.ndim == 2 else mask
