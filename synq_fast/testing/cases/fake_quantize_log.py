"""Fake quantization over a logarithmic grid."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from synq_fast.testing.case import (
    EXACT,
    Nearest,
    OpCase,
    Sample,
    Tolerance,
    constant,
    nbytes,
    uniform,
)
from synq_fast.testing.cases._quantization import over_channels, parts, special_values

GRADIENT = Tolerance(rtol=2e-6)
SUM = Tolerance(atol=1e-5, rtol=1e-5)


def call(
    namespace: Any, x: torch.Tensor, scale: torch.Tensor, *, bits: int = 4, **options: Any
) -> torch.Tensor:
    """Calls the op."""
    y: torch.Tensor = namespace.fake_quantize_log(x, scale, bits, **options)
    return y


def middles(scale: float) -> torch.Tensor:
    """Returns values at and next to the levels and the middles between their logarithms."""
    exact = torch.exp2(torch.arange(-40, 5, device="cpu", dtype=torch.float64) / 2) * scale
    exact = exact.float()
    ends = constant(float("inf")), constant(float("-inf"))
    return torch.cat([exact, *(torch.nextafter(exact, end) for end in ends)])


def inputs() -> Iterator[Sample]:
    """Yields tensors of every kind of size, boundaries of codes, and what is no number."""
    yield Sample("typical", (uniform(4, 6, seed=1), constant(0.8).reshape(1)), {"bits": 3})
    for part in parts():
        options = {"bits": part.choose(4, 3, 8, 2), "axis": part.axis}
        scales = constant(0.9)
        if part.axis is not None:
            scales = torch.linspace(0.3, 1.1, part.x.shape[part.axis], device="cpu")
        yield Sample(part.reason, (part.x.abs() / 3, scales), options, **part.flags)
    for bits in (2, 3, 4, 5, 16):
        for scale in (1.0, 0.3, 7.0):
            yield Sample(f"middles, scale {scale}", (middles(scale), constant(scale)),
                         {"bits": bits})  # fmt: skip
    for bits in (4, 8):
        for scale in (1.0, 0.3, 1e30, 1e-30, float("inf"), float("nan")):
            tensors = special_values(), constant(scale)
            yield Sample(f"special values, scale {scale}", tensors, {"bits": bits}, special=True)
    yield Sample("a long sum", (uniform(2_000_000), constant(0.5)), large=True)


def oracle(
    x: torch.Tensor, scale: torch.Tensor, *, bits: int = 4, axis: int | None = None
) -> torch.Tensor:
    """The definition: a logarithm in float64 of the float32 ratio decides the codes."""
    s = over_channels(scale, x, axis)
    ratio = (x.detach().float() / s.detach().float()).double()
    code = torch.round(-torch.log2(ratio.clamp(1e-300, 1.0)))
    y = (s.detach().float() * torch.exp2(-code).float()).double()
    y = y.masked_fill((ratio < 2.0**-126) | (code > 2**bits - 2), 0.0)
    above = ratio > 1
    slope = torch.where(above | (y == 0), 0.0, y / x.detach())
    of_x, of_scale = x * slope, torch.where(above, s, torch.zeros_like(s))
    return y + (of_x - of_x.detach()) + (of_scale - of_scale.detach())


def nearest(x: torch.Tensor, scale: torch.Tensor) -> Callable[[], object]:
    """Returns ATen's fake quantization over a learned grid, whose steps are equal."""
    zero_point = torch.zeros_like(scale)
    return lambda: torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, 0, 7, 1.0)


CASE = OpCase(
    name="fake_quantize_log",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    gradients=(GRADIENT, SUM),
    nearest=Nearest("_fake_quantize_learnable_per_tensor_affine", nearest),
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
    quantizes=True,
    gradcheck=False,
)
