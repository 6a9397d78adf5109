"""Activation functions, LayerNorm and softmax with fake quantization, uneven grids; both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synq_fast import ops, reference

from . import columns, harness

BITS = 8
# Of DeiT-Tiny with a batch of 8, and on a GPU of ViT-Base with 64.
SIZES = {
    **dict.fromkeys(
        ("gelu", "silu", "hardswish"),
        harness.sizes(cpu=[(8, 197, 768)], cuda=[(8, 197, 768), (64, 197, 3072)]),
    ),
    "layer_norm": harness.sizes(cpu=[(8, 197, 192)], cuda=[(8, 197, 192), (64, 197, 768)]),
    "softmax": harness.sizes(cpu=[(8, 3, 197, 197)], cuda=[(8, 3, 197, 197), (64, 12, 197, 197)]),
}
CASES = [(name, shape) for name, shapes in SIZES.items() for shape in shapes]
CURVES: dict[str, Callable[..., Tensor]] = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "hardswish": functional.hardswish,
}


class Activation(NamedTuple):
    """What is measured of one activation.

    Attributes:
        leaves: What is trained, with the scale and the zero point last.
        fused: The name of the op.
        values: PyTorch's activation alone.
    """

    leaves: list[Tensor]
    fused: str
    values: Callable[..., Tensor]


def _drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(harness.DEVICE, dtype)


def _turned(actual: Tensor, expected: Tensor) -> float:
    """The share of values that rounding turned, each a step or more off."""
    return ((actual - expected).abs() > 1e-6).float().mean().item()


def activation(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Activation:
    """Returns inputs and functions."""
    x = _drawn(shape, dtype)
    row = torch.linspace(0.5, 1.5, shape[-1], device=harness.DEVICE)
    zero = torch.tensor([100.0], device=harness.DEVICE)
    scale = torch.tensor([60.0], device=harness.DEVICE)
    if name in CURVES:
        fused, curve = f"{name}_fake_quantize", CURVES[name]
        leaves, values = [x, scale, zero], lambda x, *_: curve(x)
    elif name == "layer_norm":
        fused = "layer_norm_fake_quantize"
        leaves = [x, row, row - 1, scale, zero]

        def values(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Tensor:
            return functional.layer_norm(x, x.shape[-1:], weight.to(dtype), bias.to(dtype), 1e-6)
    else:
        fused = "softmax_fake_quantize"
        leaves, values = [x, scale * 20], lambda x, *_: x.softmax(-1)
    return Activation([v.requires_grad_() for v in leaves], fused, values)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def bench_transformer_fake_quantize(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against PyTorch's activation before our quantizer and before ATen's, and a copy."""
    case = activation(name, shape, dtype)
    gradient = _drawn(shape, dtype, seed=1)
    x, scale = case.leaves[0], case.leaves[-2 if name != "softmax" else -1]
    zero = case.leaves[-1] if name != "softmax" else 2.0 ** (BITS - 1)

    def step(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad(y, case.leaves, gradient)]

    def fused(namespace: Any) -> list[Tensor]:
        return step(getattr(namespace, case.fused)(*case.leaves, BITS))

    def separate() -> list[Tensor]:
        return step(ops.fake_quantize_learned(case.values(*case.leaves), scale, zero, BITS))

    expected = fused(reference)
    ours, omitted = columns.our_columns(fused, ops)
    for column, call in ours.items():
        assert _turned(call()[0], expected[0]) <= 1e-4, f"{column} differs"

    def aten() -> list[Tensor]:
        values = case.values(*case.leaves)
        low = 0 if name == "softmax" else -(2 ** (BITS - 1))
        offset = torch.zeros_like(scale)
        quantize = torch._fake_quantize_learnable_per_tensor_affine
        y = quantize(values, 1 / scale, offset, low, low + 2**BITS - 1, 1.0)
        return [y, *torch.autograd.grad(y, case.leaves, gradient, allow_unused=True)]

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows[f"{name}, then our fake_quantize_learned"] = separate
    rows[f"{name}, then ATen's learnable op"] = aten
    rows["reference, eager"] = lambda: fused(reference)
    rows["clone"] = x.detach().clone
    compare(
        f"{name} {'x'.join(map(str, shape))} {BITS} bits, forward and backward"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        # x in and y out; then x and the gradient in, and the gradient of x out.
        bytes_moved=5 * x.nbytes,
        omitted=omitted,
    )


def published_log(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Returns FQ-ViT's rounding as its authors write it, straight through, with a code for zero."""
    code = torch.round(-(x / scale).clamp(1e-15, 1.0).log2())
    y = torch.where(code < 2**bits - 1, scale * torch.exp2(-code), 0.0)
    return x + (y - x).detach()


def plain_minifloat(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Returns the rounding to small floats as one would write it, straight through."""
    mantissa = bits - 3
    largest = (2 ** (mantissa + 1) - 1) * 2**6
    scale = largest / (high - low)
    zero = torch.round(scale * low)
    steps = scale * x - zero
    quantum = torch.exp2(torch.floor(torch.log2(steps.clamp(min=1))) - mantissa).clamp(min=1)
    level = (torch.round(steps / quantum) * quantum).clamp(0, largest)
    return x + ((level + zero) / scale - x).detach()


def compare_roundings(
    title: str,
    compare: Callable[..., harness.Comparison],
    op: str,
    plain: tuple[str, Callable[..., Tensor]],
    x: Tensor,
    *given: Any,
    passes: int,
) -> None:
    """Ours against the reference, another form, eager and compiled, and a copy, at 4 bits.

    `passes` are the tensors as large as `x` that must be read or written.
    """
    bits = 4
    name, other = plain
    gradient = _drawn(x.shape, x.dtype, seed=1)

    def step(rounded: Callable[..., Tensor]) -> list[Tensor]:
        y = rounded(x, *given, bits)
        return [y, *torch.autograd.grad(y, x, gradient)]

    ours, omitted = columns.our_columns(lambda namespace: step(getattr(namespace, op)), ops)
    expected = step(getattr(reference, op))[0]
    for column, call in ours.items():
        assert torch.equal(call()[0], expected), f"{column} differs"
    # In half precision the other form rounds between its steps.
    turned = _turned(step(other)[0], expected)
    assert turned <= 1e-4 or x.dtype != torch.float32, f"the {name} form differs"
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows[f"{name}, eager"] = lambda: step(other)
    compiled, reason = columns.compiled_column(other, x, *given, bits, own=True)
    if compiled is None:
        omitted[f"{name}, torch.compile"] = reason
    else:
        rows[f"{name}, torch.compile"] = lambda: torch.autograd.grad(compiled(), x, gradient)
    rows["reference, eager"] = lambda: step(getattr(reference, op))
    rows["clone"] = x.detach().clone
    compare(
        f"{title} {'x'.join(map(str, x.shape))} {bits} bits, forward and backward"
        + harness.kind("contiguous", x.dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=passes * x.nbytes,
        omitted=omitted,
    )


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("shape", SIZES["softmax"], ids=str)
def bench_fake_quantize_log(
    shape: tuple[int, ...], dtype: torch.dtype, compare: Callable[..., harness.Comparison]
) -> None:
    """Probabilities on powers of two, beside the published form."""
    x = _drawn(shape, torch.float32).mul(3).softmax(-1).to(dtype).requires_grad_()
    scale = torch.tensor([1.0], device=harness.DEVICE)
    published = "published", published_log
    compare_roundings("log", compare, "fake_quantize_log", published, x, scale, passes=5)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("shape", SIZES["gelu"], ids=str)
def bench_fake_quantize_minifloat(
    shape: tuple[int, ...], dtype: torch.dtype, compare: Callable[..., harness.Comparison]
) -> None:
    """A GELU's outputs on small floats, beside plain PyTorch."""
    x = functional.gelu(_drawn(shape, torch.float32)).to(dtype).requires_grad_()
    ends = (torch.tensor([end], device=harness.DEVICE) for end in (-0.17, 3.91))
    plain, op = ("plain", plain_minifloat), "fake_quantize_minifloat"
    # The gradient is passed on as it is.
    compare_roundings("minifloat", compare, op, plain, x, *ends, passes=2)


def plain_on_floats(x: Tensor, scale: Tensor, zero: Tensor, bits: int, name: str) -> Tensor:
    """Returns the activation function on small floats as one would write it, straight through."""
    values = CURVES[name](x)
    largest = (2 ** (bits - 2) - 1) * 2**6
    low = zero.round() / scale
    return plain_minifloat(values, low, low + largest / scale, bits)


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("shape", SIZES["gelu"], ids=str)
def bench_activation_on_small_floats(
    shape: tuple[int, ...],
    name: str,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Activation functions on small floats, beside the composition of ops and plain PyTorch."""
    bits = 4
    x = _drawn(shape, dtype).requires_grad_()
    gradient = _drawn(shape, dtype, seed=1)
    low, high = (torch.tensor([end], device=harness.DEVICE) for end in (-0.375, 5.0))
    scale = 1 / (high - low) * 192.0
    zero = torch.round(scale * low)

    def step(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad(y, x, gradient)]

    def fused(namespace: Any) -> list[Tensor]:
        op = getattr(namespace, f"{name}_fake_quantize")
        return step(op(x, scale, zero, bits, grid="minifloat"))

    def separate() -> list[Tensor]:
        return step(ops.fake_quantize_minifloat(CURVES[name](x), low, high, bits, ste="clip"))

    ours, omitted = columns.our_columns(fused, ops)
    expected = fused(reference)[0]
    plain = {"plain": lambda: step(plain_on_floats(x, scale, zero, bits, name))}
    # In half precision the other forms round between their steps.
    others = plain | {"composition": separate} if dtype == torch.float32 else {}
    for column, call in (ours | others).items():
        assert _turned(call()[0], expected) <= 1e-4, f"{column} differs"
    rows: dict[str, Callable[[], object]] = dict(ours)
    rows[f"{name}, then our fake_quantize_minifloat"] = separate
    rows["plain, eager"] = plain["plain"]
    compiled, reason = columns.compiled_column(
        plain_on_floats, x, scale, zero, bits, name, own=True
    )
    if compiled is None:
        omitted["plain, torch.compile"] = reason
    else:
        rows["plain, torch.compile"] = lambda: torch.autograd.grad(compiled(), x, gradient)
    rows["reference, eager"] = lambda: fused(reference)
    rows["clone"] = x.detach().clone
    compare(
        f"{name} on small floats {'x'.join(map(str, shape))} {bits} bits, forward and backward"
        + harness.kind("contiguous", dtype),
        rows,
        ours=next(iter(ours), None),
        copy="clone",
        bytes_moved=5 * x.nbytes,
        omitted=omitted,
    )
