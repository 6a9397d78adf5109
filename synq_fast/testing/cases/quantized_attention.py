"""Attention whose operands and probabilities are on grids."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, constant, nbytes, noise
from synq_fast.testing.cases import fake_quantize_learned as learned
from synq_fast.testing.cases._learned import LARGEST, VALUE, undecided
from synq_fast.testing.cases._powers import oracle as of_powers
from synq_fast.testing.cases._powers import undecided_powers

Tensor = torch.Tensor
# Batch, heads, queries, keys, width.
SHAPES = {
    (0, 2, 3, 4, 5): "no image",
    (1, 1, 1, 1, 1): "one of each",
    (2, 2, 5, 3, 7): "odd",
    (1, 2, 9, 17, 16): "one more than a tile of rows and than a vector",
    (3, 1, 16, 16, 32): "aligned",
    (2, 2, 33, 40, 24): "a tile of CUDA and of Triton, and one more",
}
LONG = {
    (2, 2, 49, 49, 32): "windows of Swin",
    (1, 1, 35, 270, 9): "rows longer than are held by CUDA",
}
LARGE = {(2, 3, 197, 197, 64): "DeiT-Tiny"}


def call(
    namespace: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *given: Tensor,
    bits: Any = 4,
    summand: bool = True,
    **options: Any,
) -> Tensor:
    """Calls the op; a bias is given flat."""
    *grids, bias = given
    shaped = bias.reshape(q.shape[1], q.shape[2], k.shape[2]) if summand else None
    y: Tensor = namespace.quantized_attention(q, k, v, *grids, bits, bias=shaped, **options)
    return y


def grids(bits: Any, columns: int, heads: int | None = None) -> list[Tensor]:
    """Returns grids that clip some of both ends, and of the most likely probabilities."""
    widths = bits if isinstance(bits, tuple) else (bits,) * 4
    found: list[Tensor] = []
    for place, width in enumerate(widths[:3]):
        scale = (2**width - 1) / (3.0 + 0.5 * place)
        found += constant(scale), constant(scale * (0.2 * place - 1.6) + 2 ** (width - 1) + 0.3)
    found.append(constant((2 ** widths[3] - 1) * max(1.0, columns / 8)))
    if heads is None:
        return found
    each = torch.linspace(0.9, 1.2, heads, dtype=torch.float32, device="cpu")
    return [value * each for value in found]


def operands(batch: int, heads: int, rows: int, columns: int, width: int) -> list[Tensor]:
    """Returns queries, keys and values."""
    shape = batch, heads, columns, width
    seeds = rows + columns
    return [noise(batch, heads, rows, width, seed=seeds)] + [
        noise(*shape, seed=seeds + i, mean=0.2) for i in (1, 2)
    ]


def masks(count: int, rows: int, columns: int) -> Tensor:
    """Returns which keys are kept: of each query at least one."""
    kept = noise(count, rows, columns, seed=columns) < 0.8
    kept[..., 0] = True
    return kept


def inputs() -> Iterator[Sample]:
    """Yields heads of every size, with and without summands, and what is no number."""
    options: dict[str, Any] = {
        "bits": (3, 4, 4, 3),
        "alpha": 0.5,
        "gradient_scale": (0.5, 1.0, 2.0, 0.25),
        "mask": masks(1, 5, 7)[0],
    }
    tensors = *operands(2, 1, 5, 7, 4), *grids((3, 4, 4, 3), 7), noise(35, seed=3)
    yield Sample("typical", tensors, options)
    turn = 0
    for shapes, flags in (
        (SHAPES, {"every_layout": True}),
        (LONG, {}),
        (LARGE, {"large": True, "every_layout": True}),
    ):
        for shape, reason in shapes.items():
            batch, heads, rows, columns, width = shape
            bits = (4, 8, 2)[turn % 3]
            options = {"bits": bits, "alpha": width**-0.5, "summand": turn % 2 == 1}
            options["gradient_scale"] = (1.0, 0.5)[turn % 2]
            if turn % 4 == 2:
                options["mask"] = masks(max(batch, 1), rows, columns)
            bias = noise(heads * rows * columns, seed=turn)
            each = heads if turn % 4 == 3 else None
            tensors = *operands(*shape), *grids(bits, columns, each), bias
            yield Sample(reason, tensors, options, **flags)
            turn += 1
    tensors = *operands(1, 2, 10, 12, 8), *grids(16, 12), noise(240)
    yield Sample("codes whose sums are not exact", tensors, {"bits": 16, "alpha": 0.3})
    tensors = *operands(1, 2, 6, 9, 8), *grids(4, 9), noise(108)
    yield Sample("a number as mask", tensors, {"mask": noise(6, 9), "alpha": -0.4})
    q, k, v = operands(2, 2, 6, 9, 8)
    q[0, 0, 1, 2], k[0, 1, 3, 4], v[1, 0, 2, 1] = math.nan, math.inf, -math.inf
    v[1, 1, 0, 0] = math.nan
    bias = noise(108)
    bias[:9], bias[60] = -math.inf, -math.inf
    yield Sample("special values", (q, k, v, *grids(4, 9), bias), special=True)
    for place in range(7):
        pairs = grids(4, 5)
        pairs[place] = constant(math.nan)
        tensors = *operands(1, 1, 3, 5, 4), *pairs, noise(15)
        if place in (0, 3, 6):
            yield Sample(f"grid {place} is no number", tensors, special=True)
    yield from powers()


def on_powers(given: list[Tensor]) -> list[Tensor]:
    """Returns grids whose last is a largest level that some probabilities exceed."""
    return [*given[:-1], 0.3 * given[-1] / given[-1].mean()]


def powers() -> Iterator[Sample]:
    """Yields heads whose probabilities are on powers of two."""
    shapes = {
        (2, 2, 5, 3, 7): "odd",
        (1, 2, 9, 17, 16): "one more than a tile of rows and than a vector",
        (2, 2, 33, 40, 24): "a tile of CUDA and of Triton, and one more",
        (1, 1, 35, 270, 9): "rows longer than are held by CUDA",
    }
    for turn, (shape, reason) in enumerate(shapes.items()):
        batch, heads, rows, columns, width = shape
        bits = (4, (4, 4, 4, 2), 8, (4, 8, 8, 5))[turn]
        options: dict[str, Any] = {"p_grid": "log2", "bits": bits, "alpha": 2 * width**-0.5}
        options |= {"summand": turn % 2 == 1, "gradient_scale": (1.0, 0.5)[turn % 2]}
        if turn == 2:
            options["mask"] = masks(batch, rows, columns)
        given = on_powers(grids(bits, columns, heads if turn == 1 else None))
        tensors = *operands(*shape), *given, noise(heads * rows * columns, seed=turn)
        yield Sample(f"{reason}, powers of two", tensors, options, every_layout=turn < 2)
    q, k, v = operands(2, 1, 6, 9, 8)
    q[0, 0, 1, 2], v[1, 0, 2, 1] = math.nan, -math.inf
    bias = noise(54)
    bias[:9], bias[30] = -math.inf, -math.inf
    for scale in (1.0, math.nan):
        given = [*grids(4, 9)[:-1], constant(scale)]
        reason = f"special values, powers of two up to {scale}"
        yield Sample(reason, (q, k, v, *given, bias), {"p_grid": "log2"}, special=True)


def _axis(scale: Tensor) -> int | None:
    return 1 if scale.numel() > 1 else None


def _logits(q: Tensor, k: Tensor, bias: Tensor, options: Any) -> Tensor:
    """The definition of logits, from quantized operands."""
    logits: Tensor = options.get("alpha", 1.0) * (q @ k.transpose(-2, -1))
    if options.get("summand", True):
        logits = logits + bias.reshape(logits.shape[1:]).to(logits.dtype)
    mask = options.get("mask")
    if mask is not None:
        windows = mask if mask.ndim == 3 else mask[None]
        added = windows.to(logits.dtype)
        if mask.dtype == torch.bool:
            added = torch.where(windows, 0.0, -math.inf).to(logits.dtype)
        turns = torch.arange(len(logits), device=logits.device) % len(windows)
        logits = logits + added[turns][:, None]
    return logits


def oracle(q: Tensor, k: Tensor, v: Tensor, *given: Tensor, **options: Any) -> Tensor:
    """The definition: grids around products in float64."""
    *pairs, p_scale, bias = given
    bits, factors = options.get("bits", 4), options.get("gradient_scale", 1.0)
    widths = bits if isinstance(bits, tuple) else (bits,) * 4
    factors = factors if isinstance(factors, tuple) else (factors,) * 4
    pairs += [p_scale, torch.full_like(p_scale, 2 ** (widths[3] - 1))]

    def rounded(place: int, x: Tensor) -> Tensor:
        scale, zero = pairs[2 * place : 2 * place + 2]
        return learned.oracle(
            x, scale, zero, bits=widths[place], axis=_axis(scale), gradient_scale=factors[place]
        )

    logits = _logits(rounded(0, q), rounded(1, k), bias, options)
    p = logits.softmax(-1)
    if options.get("p_grid") == "log2":
        y = of_powers(p, p_scale, bits=widths[3], gradient_scale=factors[3], axis=_axis(p_scale))
        return y @ rounded(2, v)
    return rounded(3, p) @ rounded(2, v)


def _total(value: Tensor, scale: Tensor) -> Tensor:
    """The sum of what shares a scale."""
    return value.sum((0, 2, 3)) if scale.numel() > 1 else value.sum().reshape(scale.shape)


class _Rounded(NamedTuple):
    """What rounding errors of probabilities do to what is made of them.

    Attributes:
        of_codes: Of the quantized values.
        entered: Where their gradient may jump.
        level: Bounds of the quantized values.
        of_slopes: Relative, of gradients.
        of_scale: Of the scale's terms, times the incoming gradient.
    """

    of_codes: Tensor
    entered: Tensor
    level: Tensor
    of_slopes: Tensor
    of_scale: Tensor


def _on_steps(p: Tensor, relative: Tensor, p_scale: Tensor, bits: int) -> _Rounded:
    half = constant(2.0 ** (bits - 1))
    each = [
        undecided(p[:, i], p[:, i] * relative[:, i], one, half, bits)
        for i, one in enumerate(p_scale.expand(p.shape[1]))
    ]
    turned, entered = (
        torch.stack(parts, 1)
        for parts in ([one.turned for one in each], [one.entered for one in each])
    )
    step = 1 / p_scale.reshape(-1, 1, 1)
    level = p + step
    rounding = (p * relative + 3e-7 * (8 + float(half)) * step) * step
    of_scale = rounding + turned * step**2 + 2e-6 * level * step
    return _Rounded(turned.double() * (1.001 * step), entered, level, relative, of_scale)


def _on_powers(p: Tensor, relative: Tensor, p_scale: Tensor, bits: int) -> _Rounded:
    found = undecided_powers(p, relative.expand_as(p), p_scale.reshape(-1, 1, 1), bits)
    # A slope is a level over its probability: the error of that counts twice.
    of_scale = found.ended + 1e-5 * found.above
    return _Rounded(found.change, found.turned, 1.5 * p, 2 * relative, of_scale)


def units(sample: Sample) -> tuple[Any, ...]:
    """Codes that the rounding of probabilities may turn, and what that does to all gradients."""
    q, k, v, *pairs, bias = (x.double().nan_to_num(0.0, 0.0, 0.0) for x in sample.tensors)
    if q.numel() == 0 or sample.special:
        return (1.0,) * 12
    options = sample.options
    bits, alpha = options.get("bits", 4), options.get("alpha", 1.0)
    widths = bits if isinstance(bits, tuple) else (bits,) * 4
    scales = [s.reshape(-1, 1, 1) for s in pairs[::2]]
    zeros = [z.reshape(-1, 1, 1).round() for z in pairs[1:6:2]]
    near = []
    for x, s, z, width in zip((q, k, v), scales, zeros, widths, strict=False):
        half = 2 ** (width - 1)
        near.append(((s * x - z).round().clamp(-half, half - 1) + z) / s)
    logits = _logits(near[0], near[1], bias, options)
    p = logits.softmax(-1)
    size = abs(alpha) * (near[0].abs() @ near[1].abs().transpose(-2, -1))
    size = size + logits.nan_to_num(0.0, 0.0, 0.0).abs()
    relative = 5e-7 + 3e-7 * size.amax(-1, keepdim=True)
    log2 = options.get("p_grid") == "log2"
    found = (_on_powers if log2 else _on_steps)(p, relative, pairs[6], widths[3])
    of_codes, level = found.of_codes, found.level
    values = near[2].abs()
    of_y = of_codes @ values + 1e-6 * (level @ values)
    of_v = LARGEST * (of_codes + 1e-6 * level).transpose(-2, -1).sum(-1, keepdim=True)
    # The greatest gradient of a probability, and what is off in those of logits.
    greatest = LARGEST * values.sum(-1).amax(-1)[..., None, None]
    # Roundings are far from all the worst and of one sign.
    of_t = p * greatest * (0.4 * found.of_slopes + 4e-7 + 2.0 * found.entered.any(-1, keepdim=True))
    of_q, of_k = (
        abs(alpha) * (part @ other.abs())
        for part, other in ((of_t, near[1]), (of_t.transpose(-2, -1), near[0]))
    )
    sums = []
    for place, (of_x, bound) in enumerate(((of_q, near[1]), (of_k, near[0]), (of_v, None))):
        s, z, y = scales[place], zeros[place], near[place].abs()
        largest = LARGEST * level.sum(-2)[..., None]
        if bound is not None:
            other = p if place == 0 else p.transpose(-2, -1)
            largest = 2 * abs(alpha) * greatest * (other @ bound.abs())
        term = of_x * (y + 1 / s) + (largest + of_x) * 3e-8 * (8 + z.abs()) / s
        sums += [_total(part, pairs[2 * place]) for part in (term / s, (of_x + 1e-7 * largest) / s)]
    sums.append(_total(greatest * found.of_scale, pairs[6]))
    return of_y, of_q, of_k, of_v.expand_as(v), *sums, of_t.sum(0).flatten()


def nearest(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Any:
    """ATen's attention in floating point: what a call would cost without quantizers."""
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v)


WITHIN = Tolerance(atol=1.0, rtol=2e-6)
CASE = OpCase(
    name="quantized_attention",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(VALUE,),
    gradients=(WITHIN,) * 11,
    units=units,
    bytes_moved=lambda sample: nbytes(sample.tensors[0]) + nbytes(*sample.tensors[:3]),
    nearest=Nearest(
        "scaled_dot_product_attention",
        nearest,
        lambda n, *x: n.quantized_attention(*x[:10], 4),
    ),
    cast=(0, 1, 2),
    laid_out=(0, 1, 2),
    keeps_layout=True,
    same_type=True,
    quantizes=True,
    variants=({"mask": masks(2, 5, 7), "bits": 8}, {"p_grid": "log2"}),
    gradcheck=False,
    saves=250,
)
