"""Softmax with fake quantization over equal steps or powers of two."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases import fake_quantize_learned as learned
from synq_fast.testing.cases._learned import GRADIENT, LARGEST, SUM, VALUE, undecided
from synq_fast.testing.cases._powers import oracle as of_powers
from synq_fast.testing.cases._powers import undecided_powers

SHAPES = {
    (0, 3): "no row",
    (3,): "one row",
    (5, 1): "rows of one",
    (4, 7): "odd",
    (2, 3, 33): "less than any block, odd",
    (3, 64): "aligned",
    (2, 3, 5, 24): "heads",
    (4, 513): "one more than a block on the CPU",
}
LONG = {
    (2, 49, 49): "a window of Swin",
    (3, 1030): "one more than a block of Triton",
    (2, 4100): "rows beyond a block of threads, aligned",
    (90, 12): "more rows than parts",
}
LARGE = {(4, 3, 197, 197): "DeiT-Tiny"}


def call(
    namespace: Any, logits: torch.Tensor, scale: torch.Tensor, *, bits: int = 4, **options: Any
) -> torch.Tensor:
    """Calls the op."""
    y: torch.Tensor = namespace.softmax_fake_quantize(logits, scale, bits, **options)
    return y


def inputs() -> Iterator[Sample]:
    """Yields rows of every kind of length, scales that clip, masks, and what is no number."""
    options = {"bits": 3, "alpha": 0.5, "gradient_scale": 0.5}
    yield Sample("typical", (noise(4, 6, seed=1), constant(20.0).reshape(1)), options)
    turn = 0
    for shapes, flags in (
        (SHAPES, {"every_layout": True}),
        (LONG, {}),
        (LARGE, {"large": True, "every_layout": True}),
    ):
        for shape, reason in shapes.items():
            bits = (4, 8, 2)[turn % 3]
            options = {"bits": bits, "alpha": (0.125, 1.0)[turn % 2]}
            options["gradient_scale"] = (1.0, 0.5)[turn % 2]
            # The most likely tenth or so is clipped.
            scale = constant((2**bits - 1) * shape[-1] / 10)
            yield Sample(reason, (noise(*shape, seed=turn, scale=4.0), scale), options, **flags)
            turn += 1
    for alpha in (-0.7, 0.0, 20.0):
        yield Sample(f"alpha {alpha}", (noise(5, 40), constant(60.0)), {"alpha": alpha})
    logits = noise(6, 20, mean=80.0)
    logits[:, 3::4] = -math.inf
    yield Sample("masked, far from zero", (logits, constant(255.0)), {"bits": 8})
    yield Sample("equal logits", (torch.zeros(3, 20, device="cpu"), constant(15.0)))
    logits = noise(6, 20)
    logits[1, 2], logits[3, 4], logits[4], logits[5, 5] = math.nan, math.inf, -math.inf, 1e30
    yield Sample("special values", (logits, constant(15.0)), special=True)
    yield Sample("no scale", (noise(3, 20), constant(math.nan)), special=True)
    yield from powers()


def powers() -> Iterator[Sample]:
    """Yields the same on powers of two, with largest levels that some probabilities exceed."""
    shapes = {(0, 3): "no row", (4, 7): "odd", (3, 64): "aligned", (4, 513): "two stretches"}
    longer = {(3, 1030): "beyond a block of Triton", (90, 12): "more rows than parts"}
    for turn, (shape, reason) in enumerate((shapes | longer).items()):
        options = {
            "grid": "log2",
            "bits": (4, 3, 5, 2)[turn % 4],
            "alpha": (0.7, 1.0, -0.3)[turn % 3],
            "gradient_scale": (1.0, 0.5)[turn % 2],
        }
        tensors = noise(*shape, seed=turn, scale=3.0), constant(3 / shape[-1])
        yield Sample(f"{reason}, powers of two", tensors, options, every_layout=shape in shapes)
    options = {"grid": "log2", "bits": 8, "alpha": 20.0}
    yield Sample("all levels that there are", (noise(5, 40), constant(0.9)), options)
    logits = noise(6, 20, mean=80.0)
    logits[:, 3::4] = -math.inf
    tensors = logits, constant(0.5)
    yield Sample("masked, powers of two", tensors, {"grid": "log2"})
    logits = noise(6, 20)
    logits[1, 2], logits[3, 4], logits[4], logits[5, 5] = math.nan, math.inf, -math.inf, 1e30
    for scale in (1.0, math.inf, math.nan):
        reason = f"special values, powers of two, scale {scale}"
        yield Sample(reason, (logits, constant(scale)), {"grid": "log2"}, special=True)


def oracle(
    logits: torch.Tensor,
    scale: torch.Tensor,
    *,
    alpha: float = 1.0,
    bits: int = 4,
    grid: str = "uniform",
    **options: Any,
) -> torch.Tensor:
    """The definition: the learned grid's from zero, or powers of two, of float64 probabilities."""
    shifted = alpha * logits - (alpha * logits.detach()).amax(-1, keepdim=True)
    exponentials = shifted.exp()
    values = exponentials / exponentials.sum(-1, keepdim=True)
    if grid == "log2":
        return of_powers(values, scale, bits=bits, **options)
    zero_point = scale.new_full((), 2 ** (bits - 1))
    return learned.oracle(values, scale, zero_point, bits=bits, **options)


def units(sample: Sample) -> tuple[Any, ...]:
    """Codes that the rounding of probabilities may turn, and what that does to the gradients."""
    logits, scale = sample.tensors
    if logits.numel() == 0:
        return (1.0,) * 3
    bits, alpha = sample.options.get("bits", 4), sample.options.get("alpha", 1.0)
    position = alpha * logits.double()
    values = position.softmax(-1).nan_to_num(0.0)
    # An exponent is right to a rounding of the logit and of the greatest.
    size = position.nan_to_num(0.0, 0.0, 0.0).abs()
    relative = 5e-7 + 1.5e-7 * size.amax(-1, keepdim=True)
    if sample.options.get("grid") == "log2":
        powers = undecided_powers(values, relative.expand_as(values), scale, bits)
        turned = powers.turned.any(-1, keepdim=True)
        of_logits = LARGEST * abs(alpha) * (values * (8 * relative + 2.0 * turned) + 1e-36)
        ended = LARGEST * float(powers.ended.sum() + 1e-6 * powers.above.sum())
        return powers.change, of_logits, ended
    error = values * relative
    found = undecided(values, error, scale, constant(2.0 ** (bits - 1)), bits)
    # A code that enters the grid adds its gradient to the sum of its row.
    entered = found.entered.any(-1, keepdim=True)
    of_logits = LARGEST * abs(alpha) * (values * (4 * relative + 2.0 * entered) + 1e-36)
    return found.value, of_logits, found.sums(float(error.mean()))[0]


def nearest(logits: torch.Tensor, scale: torch.Tensor) -> Any:
    """ATen's ops in a row; the second divides by its scale."""
    fused, zero_point = torch._fake_quantize_learnable_per_tensor_affine, torch.zeros_like(scale)
    return lambda: fused(logits.softmax(-1), scale, zero_point, 0, 15, 1.0)


CASE = OpCase(
    name="softmax_fake_quantize",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(VALUE,),
    gradients=(GRADIENT, SUM),
    units=units,
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest(
        "softmax + _fake_quantize_learnable_per_tensor_affine",
        nearest,
        lambda n, *x: n.softmax_fake_quantize(*x, 4),
    ),
    keeps_layout=True,
    same_type=True,
    quantizes=True,
    variants=({"grid": "log2"},),
    gradcheck=False,
    saves=25,
)
