"""Activation functions with fake quantization over a learned grid."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases import fake_quantize_learned as learned
from synq_fast.testing.cases._learned import (
    GRADIENT,
    LARGEST,
    SUM,
    VALUE,
    undecided,
    undecided_levels,
)
from synq_fast.testing.cases._quantization import parts, quantized, special_values
from synq_fast.testing.cases.fake_quantize_minifloat import levels_of, nearest_levels


def pair(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a scale and a fractional zero point that clip some of both ends."""
    scale = (2**bits - 1) / 2.3
    return constant(scale), constant(scale * -0.12 + 2 ** (bits - 1) + 0.3)


def float_pair(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the same of small floats."""
    scale = float(levels_of(bits)[-1]) / 2.3
    return constant(scale), constant(scale * -0.12 + 0.3)


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
        bits = part.choose(4, 3, 8)
        options = options | {"bits": bits, "grid": "minifloat"}
        yield Sample(f"{part.reason}, small floats", (part.x, *float_pair(bits)), options)
    x = torch.linspace(-9, 9, 2001, dtype=torch.float32, device="cpu")
    for bits in (2, 4, 8, 16):
        for zero in (-2.5, -0.3, 0.5, 1000.5):
            tensors = x, constant((2**bits - 1) / 2.3), constant(zero)
            yield Sample(f"zero point {zero}", tensors, {"bits": bits})
    for bits in range(3, 9):
        for zero in (-2.5, -0.3, 0.5):
            tensors = x, float_pair(bits)[0], constant(zero)
            options = {"bits": bits, "grid": "minifloat"}
            yield Sample(f"zero point {zero}, small floats", tensors, options)
    # Where torch's hard-swish begins and ends, and next to it.
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float32, device="cpu")
    places = [ends, *(torch.nextafter(ends, torch.full_like(ends, end)) for end in (-9, 9))]
    yield Sample("ends", (torch.cat(places), constant(3.0), constant(-2.0)))
    for numbers in ((7.5, 0.0), (0.5, 2.5), (1.0, 1000.5), (float("nan"), 0.0),
                    (1.0, float("nan"))):  # fmt: skip
        x = special_values()
        # The reference's derivative multiplies the incoming gradient by x first.
        x = torch.where(x.isfinite() & (x.abs() > 1e37), x / 64, x)
        special = x, *(constant(value) for value in numbers)
        reason = f"scale {numbers[0]}, zero point {numbers[1]}"
        yield Sample(reason, special, special=True)
        yield Sample(f"{reason}, small floats", special, {"grid": "minifloat"}, special=True)
    tensors = noise(2_000_000), constant(7.0), constant(0.0)
    yield Sample("a long sum", tensors, large=True)


def on_floats(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns float32 values, levels and where nothing was clipped."""
    s, z = scale.float(), zero_point.float()
    level, passes = nearest_levels((s * x.detach().float() - z).double(), bits)
    return (level.float() + z) / s, level.float(), passes


def make_case(
    name: str,
    function: Callable[[torch.Tensor], torch.Tensor],
    plain: Callable[[torch.Tensor], torch.Tensor],
    steepest: float,
) -> OpCase:
    """Returns the case of an op.

    Args:
        name: The activation function's.
        function: Its definition, in the type of its argument.
        plain: PyTorch's own.
        steepest: The largest slope.
    """
    op = f"{name}_fake_quantize"

    def call(
        namespace: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        *,
        bits: int = 4,
        **options: Any,
    ) -> torch.Tensor:
        y: torch.Tensor = getattr(namespace, op)(x, scale, zero_point, bits, **options)
        return y

    def oracle(
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        *,
        grid: str = "uniform",
        **options: Any,
    ) -> torch.Tensor:
        # The learned grid's, of values in float64.
        rounding = on_floats if grid == "minifloat" else quantized
        return learned.oracle(function(x), scale, zero_point, rounding=rounding, **options)

    def units(sample: Sample) -> tuple[Any, ...]:
        # Codes that the rounding of the function may turn, and what that does to the gradients.
        x, scale, zero_point = sample.tensors
        x = x.double()
        # The distribution, or the sigmoid, is right to some 1e-7.
        error = 3e-7 * x.abs()
        find = undecided_levels if sample.options.get("grid") == "minifloat" else undecided
        found = find(function(x), error, scale, zero_point, sample.options.get("bits", 4))
        finite = error.nan_to_num(0.0, 0.0, 0.0).clamp(max=1e-5)
        largest = float(finite.max()) if x.numel() else 0.0
        of_x = LARGEST * (1e-6 + steepest * found.entered)
        return found.value, of_x, *found.sums(largest)

    def nearest(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> Any:
        # ATen's ops in a row; the second divides by its scale.
        fused = torch._fake_quantize_learnable_per_tensor_affine
        return lambda: fused(plain(x), scale, zero_point, 0, 15, 1.0)

    return OpCase(
        name=op,
        call=call,
        inputs=inputs,
        oracle=oracle,
        values=(VALUE,),
        gradients=(GRADIENT, SUM, SUM),
        units=units,
        bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
        nearest=Nearest(
            f"{name} + _fake_quantize_learnable_per_tensor_affine",
            nearest,
            lambda n, *x: getattr(n, op)(*x, 4),
        ),
        keeps_layout=True,
        same_type=True,
        elementwise=True,
        quantizes=True,
        variants=({"grid": "minifloat"},),
        gradcheck=False,
        saves=26,
        registered="activation_fake_quantize",
    )
