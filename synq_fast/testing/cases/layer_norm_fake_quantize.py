"""Layer normalisation with fake quantization over a learned grid."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from synq_fast.testing.case import (
    Nearest,
    OpCase,
    Sample,
    Tolerance,
    constant,
    nbytes,
    noise,
    uniform,
)
from synq_fast.testing.cases import fake_quantize_learned as learned
from synq_fast.testing.cases._learned import GRADIENT, LARGEST, SUM, VALUE, undecided

SHAPES = {
    (0, 3): "no row",
    (3,): "one row",
    (5, 1): "rows of one",
    (4, 7): "odd",
    (2, 3, 33): "less than any block, odd",
    (3, 64): "aligned",
    (2, 4, 6, 24): "four dimensions",
    (4, 513): "one more than a block on the CPU",
}
LONG = {
    (70, 96): "more rows than are added up in float32 at a time",
    (3, 1030): "one more than a block of Triton",
    (2, 4100): "too long for the shared memory of sums, aligned",
    (300, 12): "more rows than parts",
}
LARGE = {(8, 197, 192): "DeiT-Tiny"}


def call(
    namespace: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    *,
    bits: int = 4,
    affine: bool = True,
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    factors = (weight, bias) if affine else (None, None)
    y: torch.Tensor = namespace.layer_norm_fake_quantize(
        x, *factors, scale, zero_point, bits, **options
    )
    return y


def parameters(columns: int, bits: int) -> tuple[torch.Tensor, ...]:
    """Returns weight, bias, and a grid that clips some of both ends."""
    weight, bias = uniform(columns, low=-1.5, high=1.5, seed=2), noise(columns, seed=3, scale=0.3)
    scale = (2**bits - 1) / 4.0
    return weight, bias, constant(scale), constant(scale * -1.8 + 2 ** (bits - 1) + 0.3)


def inputs() -> Iterator[Sample]:
    """Yields rows of every kind of length, grids that clip, and what is no number."""
    weight, bias, *_ = parameters(6, 3)
    pair = constant(2.0).reshape(1), constant(0.3).reshape(1)
    options = {"bits": 3, "eps": 1e-3, "gradient_scale": 0.5}
    yield Sample("typical", (noise(4, 6, seed=1), weight, bias, *pair), options)
    turn = 0
    for shapes, flags in (
        (SHAPES, {"every_layout": True}),
        (LONG, {}),
        (LARGE, {"large": True, "every_layout": True}),
    ):
        for shape, reason in shapes.items():
            bits = (4, 8, 2)[turn % 3]
            options = {"bits": bits, "gradient_scale": (1.0, 0.5)[turn % 2]}
            x = noise(*shape, seed=turn, scale=2.0, mean=0.5)
            yield Sample(reason, (x, *parameters(shape[-1], bits)), options, **flags)
            turn += 1
    for eps in (0.0, 1e-12, 1.0):
        tensors = noise(5, 40, scale=0.1), *parameters(40, 4)
        yield Sample(f"eps {eps}", tensors, {"eps": eps})
    yield Sample("without weight and bias", (noise(9, 20), *parameters(20, 4)), {"affine": False})
    x = noise(6, 50, scale=0.5, mean=100.0)
    yield Sample("means beyond deviations", (x, *parameters(50, 4)))
    x = torch.ones(3, 50, dtype=torch.float32, device="cpu") * 3
    yield Sample("rows of one value", (x, *parameters(50, 4)))
    x = noise(8, 30)
    x[1, 2], x[3, 4], x[5, 6], x[6] = float("nan"), float("inf"), -float("inf"), 1e15
    yield Sample("special values", (x, *parameters(30, 4)), special=True)
    for numbers in ((float("nan"), 0.0), (1.0, float("nan"))):
        tensors = noise(3, 20), *parameters(20, 4)[:2], *map(constant, numbers)
        yield Sample(f"scale {numbers[0]}, zero point {numbers[1]}", tensors, special=True)


def normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    """The definition, in the type of `x`."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def oracle(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    *,
    affine: bool = True,
    eps: float = 1e-6,
    **options: Any,
) -> torch.Tensor:
    """The definition: the learned grid's, of rows that are normalised in float64."""
    values = normalised(x, eps)
    if affine:
        values = values * weight + bias
    return learned.oracle(values, scale, zero_point, **options)


def units(sample: Sample) -> tuple[Any, ...]:
    """Codes that the rounding of normalised rows may turn, and what that does to the gradients."""
    x, weight, bias, scale, zero_point = sample.tensors
    if x.numel() == 0:
        return (1.0,) * 6
    x, weight, bias = (value.double().nan_to_num(0.0, 0.0, 0.0) for value in (x, weight, bias))
    if not sample.options.get("affine", True):
        weight, bias = torch.ones_like(weight), torch.zeros_like(bias)
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, correction=0, keepdim=True) + sample.options.get("eps", 1e-6)
    inverse = variance.rsqrt()
    normal = (x - mean) * inverse
    of_normal = 3e-7 * (inverse * (x.abs() + mean.abs()) + normal.abs())
    values = normal * weight + bias
    error = of_normal * weight.abs() + 1e-7 * (values.abs() + bias.abs())
    found = undecided(values, error, scale, zero_point, sample.options.get("bits", 4))
    greatest = float(weight.abs().max())
    # A code that enters the grid adds its gradient to the means of its row.
    entered = found.entered.any(-1, keepdim=True)
    relative = 2e-6 + 4 * of_normal.amax(-1, keepdim=True) + 2.0 * entered
    of_x = LARGEST * greatest * inverse * (1 + normal.abs()) * (1 + normal.abs()) * relative
    columns = x.shape[-1]
    moved = of_normal + (1e-6 + found.entered) * normal.abs()
    of_weight = LARGEST * moved.reshape(-1, columns).sum(0)
    of_bias = LARGEST * (1e-6 + found.entered.double()).reshape(-1, columns).sum(0)
    return found.value, of_x, of_weight, of_bias, *found.sums(float(error.mean()))


def nearest(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
) -> Any:
    """ATen's ops in a row; the second divides by its scale."""
    fused = torch._fake_quantize_learnable_per_tensor_affine

    def values() -> torch.Tensor:
        y = functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)
        return fused(y, scale, zero_point, 0, 15, 1.0)

    return values


COLUMN_SUM = Tolerance(atol=1.0, rtol=2e-6)
CASE = OpCase(
    name="layer_norm_fake_quantize",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(VALUE,),
    gradients=(GRADIENT, COLUMN_SUM, COLUMN_SUM, SUM, SUM),
    units=units,
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "layer_norm + _fake_quantize_learnable_per_tensor_affine",
        nearest,
        lambda n, *x: n.layer_norm_fake_quantize(*x, 4),
    ),
    keeps_layout=True,
    same_type=True,
    quantizes=True,
    gradcheck=False,
    saves=38,
)
