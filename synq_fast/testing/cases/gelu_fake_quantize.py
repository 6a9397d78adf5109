"""GELU with fake quantization over a learned grid."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases import fake_quantize_learned as learned
from synq_fast.testing.cases._learned import GRADIENT, LARGEST, SUM, VALUE, undecided
from synq_fast.testing.cases._quantization import parts, special_values


def call(
    namespace: Any,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    *,
    bits: int = 4,
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    y: torch.Tensor = namespace.gelu_fake_quantize(x, scale, zero_point, bits, **options)
    return y


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The definition, in the type of `x`."""
    return x * (0.5 * torch.erfc(x * -math.sqrt(0.5)))


def pair(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a scale and a fractional zero point that clip some of both ends."""
    scale = (2**bits - 1) / 2.3
    return constant(scale), constant(scale * -0.12 + 2 ** (bits - 1) + 0.3)


def inputs() -> Iterator[Sample]:
    """Yields tensors of every kind of size, grids that clip, and what is no number."""
    typical = noise(4, 6, seed=1), constant(3.0).reshape(1), constant(2.3).reshape(1)
    yield Sample("typical", typical, {"bits": 3, "gradient_scale": 0.5})
    for part in parts():
        if part.axis is not None:
            continue
        bits = part.choose(4, 8, 2)
        options = {"bits": bits, "gradient_scale": part.choose(1.0, 0.5)}
        yield Sample(part.reason, (part.x, *pair(bits)), options, **part.flags)
    for bits in (2, 4, 8, 16):
        for zero in (-2.5, -0.3, 0.5, 1000.5):
            x = torch.linspace(-9, 9, 2001, dtype=torch.float32, device="cpu")
            tensors = x, constant((2**bits - 1) / 2.3), constant(zero)
            yield Sample(f"zero point {zero}", tensors, {"bits": bits})
    for numbers in ((7.5, 0.0), (0.5, 2.5), (1.0, 1000.5), (float("nan"), 0.0),
                    (1.0, float("nan"))):  # fmt: skip
        x = special_values()
        # The reference's derivative multiplies the incoming gradient by x first.
        x = torch.where(x.isfinite() & (x.abs() > 1e38), x / 4, x)
        special = x, *(constant(value) for value in numbers)
        yield Sample(f"scale {numbers[0]}, zero point {numbers[1]}", special, special=True)
    tensors = noise(2_000_000), constant(7.0), constant(0.0)
    yield Sample("a long sum", tensors, large=True)


def oracle(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, **options: Any
) -> torch.Tensor:
    """The definition: the learned grid's, of values in float64."""
    return learned.oracle(gelu(x), scale, zero_point, **options)


def units(sample: Sample) -> tuple[Any, ...]:
    """Codes that the rounding of GELU may turn, and what that does to the gradients."""
    x, scale, zero_point = sample.tensors
    x = x.double()
    # The distribution is right to some 1e-7.
    error = 3e-7 * x.abs()
    found = undecided(gelu(x), error, scale, zero_point, sample.options.get("bits", 4))
    largest = float(error.nan_to_num(0.0, 0.0, 0.0).clamp(max=1e-5).max()) if x.numel() else 0.0
    # The slope is nowhere more than 1.13.
    of_x = LARGEST * (1e-6 + 1.13 * found.entered)
    return found.value, of_x, *found.sums(largest)


def nearest(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> Any:
    """ATen's ops in a row; the second divides by its scale."""
    fused = torch._fake_quantize_learnable_per_tensor_affine
    return lambda: fused(torch.nn.functional.gelu(x), scale, zero_point, 0, 15, 1.0)


CASE = OpCase(
    name="gelu_fake_quantize",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(VALUE,),
    gradients=(GRADIENT, SUM, SUM),
    units=units,
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "gelu + _fake_quantize_learnable_per_tensor_affine",
        nearest,
        lambda n, *x: n.gelu_fake_quantize(*x, 4),
    ),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
    quantizes=True,
    gradcheck=False,
    saves=26,
)
