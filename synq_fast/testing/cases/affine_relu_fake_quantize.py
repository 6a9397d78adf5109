"""A folded BatchNorm, a residual, ReLU and fake quantization in one pass."""

from collections.abc import Iterator
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
    noise,
)
from synq_fast.testing.cases import fake_quantize
from synq_fast.testing.cases._quantization import over_channels, parts, special_values
from synq_fast.testing.cases.relu_fake_quantize import activated

# Of the sum of the terms' sizes.
SUM = Tolerance(atol=3e-7, rtol=1e-5)
LONG = {
    (3, 5, 4000): "rows of several blocks",
    (2100, 33): "channels innermost, several parts",
    (1, 3, 70000): "one row a channel",
    (16, 24, 20, 20): "images shared between threads",
}


def call(
    namespace: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    *,
    low: float = 0.0,
    high: float = 2.5,
    bits: int = 4,
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    options = {**options, "residual": residual}
    y: torch.Tensor = namespace.affine_relu_fake_quantize(
        x, weight, bias, low, high, bits, **options
    )
    return y


def factors(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a weight and a bias for each channel."""
    return noise(channels, seed=3), noise(channels, seed=4)


def inputs() -> Iterator[Sample]:
    """Yields activations with and without a residual and an upper bound."""
    x = noise(2, 3, 4, 5, seed=1)
    clip = {"low": -1.0, "high": 1.5, "ste": "clip"}
    yield Sample("typical", (x, *factors(3), noise(2, 3, 4, 5, seed=2)), clip)
    for part in parts():
        if part.axis != 1:
            continue
        for upper, ste, added in (
            (None, "identity", True), (2.0, "clip", True), (None, "clip", False)
        ):  # fmt: skip
            others = (noise(*part.x.shape, seed=9, scale=2.0),) if added else ()
            options = {"upper": upper, "ste": ste, "bits": part.choose(4, 8)}
            tensors = part.x, *factors(part.x.shape[1]), *others
            reason = f"{part.reason}{', residual' if added else ''}"
            yield Sample(reason, tensors, options, **part.flags)
    residual = noise(6, 4, 7).transpose(0, 1)
    options = {"upper": 2.0, "ste": "clip"}
    tensors = noise(4, 6, 7), *factors(6), residual
    yield Sample("a residual that lies otherwise", tensors, options)
    for shape, reason in LONG.items():
        tensors = noise(*shape), *factors(shape[1])
        yield Sample(reason, tensors, large=True, every_layout=True)
        tensors = *tensors, noise(*shape, seed=1)
        yield Sample(reason, tensors, {"ste": "clip"}, large=True, every_layout=True)
    x = special_values()[:95].reshape(1, 5, -1)
    weight = torch.tensor([1.0, -2.0, float("nan"), 0.0, float("inf")], device="cpu")
    bias = torch.tensor([0.0, 1.0, 0.0, -0.0, 1.0], device="cpu")
    for low, high in ((0.0, 1.0), (0.0, 7.5), (0.0, 1e30), (float("nan"), 1.0)):
        for upper in (None, 0.75):
            options = {"low": low, "high": high, "upper": upper, "ste": "clip"}
            tensors = x, weight.float(), bias.float()
            yield Sample(f"special values up to {high}", tensors, options, special=True)
            # With NaN, infinities of both signs and zeros among the summands.
            tensors = *tensors, x.flip(2)
            yield Sample(f"special residual up to {high}", tensors, options, special=True)


def mapped(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """Returns the affine map and the sum in float32, with gradients in float64."""

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value + (value.float().double() - value).detach()

    value = rounded(x * over_channels(weight, x, 1))
    value = rounded(value + over_channels(bias, x, 1))
    return value if residual is None else rounded(value + residual)


def oracle(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    *,
    low: float = 0.0,
    high: float = 2.5,
    upper: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """The ops in a row."""
    value = activated(mapped(x, weight, bias, residual), upper)
    return fake_quantize.oracle(value, constant(low), constant(high), **options)


def units(sample: Sample) -> tuple[Any, ...]:
    """What one rounding of every term of the sums amounts to; gradients are of size one."""
    x = sample.tensors[0].double()
    others = [dim for dim in range(x.ndim) if dim != 1]
    of_weight = x.abs().sum(others).clamp(min=1)
    return 1.0, 1.0, of_weight, torch.ones_like(x).sum(others).clamp(min=1), 1.0


def nearest(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's ops in a row, without the sum."""
    mean, variance = bias.detach(), bias.detach().abs()
    return lambda: torch.fake_quantize_per_tensor_affine(
        torch.nn.functional.batch_norm(x, mean, variance, weight).relu(), 0.4, 8, 0, 15
    )


CASE = OpCase(
    name="affine_relu_fake_quantize",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT,),
    gradients=(EXACT, SUM, SUM, EXACT),
    units=units,
    bytes_moved=lambda sample: (2 + (len(sample.tensors) > 3)) * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "batch_norm + relu + fake_quantize_per_tensor_affine",
        nearest,
        lambda n, x, weight, bias, _: n.affine_relu_fake_quantize(x, weight, bias, 0.0, 2.0, 4),
    ),
    cast=(0, 3),
    laid_out=(0, 3),
    keeps_layout=True,
    same_type=True,
    elementwise=True,
    variants=({"upper": 1.2, "ste": "identity"},),
)
