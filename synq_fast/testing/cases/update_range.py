"""The bias-corrected moving average of a tensor's range."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, constant, nbytes, noise
from synq_fast.testing.cases._quantization import LARGE, LONG, SHAPES, special_values

LONGER = {
    (4097,): "one element beyond a tile",
    (16400,): "first size too large for one Triton program that updates a range",
    (33000,): "more than one thread's share",
}


def call(
    namespace: Any,
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    step: torch.Tensor,
    *,
    beta: float = 0.7,
    factors: tuple[float, ...] = (1.0, -4.0),
    sliced: bool = True,
) -> tuple[torch.Tensor, ...]:
    """Follows batches of one tensor's multiples, and a slice of it."""
    state = low.clone(), high.clone(), step.clone()
    for factor in factors:
        namespace.update_range(x if factor == 1 else x * factor, *state, beta)
    if sliced:
        namespace.update_range(x[:1] if x.ndim else x, *state, beta)
    return state


def state(*shape: int) -> tuple[torch.Tensor, ...]:
    """Returns the state of a range that has seen nothing."""
    zeros = torch.zeros(2, *shape, dtype=torch.float32, device="cpu").unbind()
    return *zeros, torch.zeros(shape, dtype=torch.int64, device="cpu")


def inputs() -> Iterator[Sample]:
    """Yields batches of every kind of size and value."""
    step = torch.tensor(3, device="cpu")
    typical = noise(4, 5, seed=1), constant(-0.3), constant(0.4), step
    yield Sample("typical", typical, {"factors": (1.0,), "sliced": False})
    for shapes, large in ((SHAPES | LONG | LONGER, False), (LARGE, True)):
        for shape, reason in shapes.items():
            x = noise(*shape, seed=len(shape), scale=3.0)
            if x.numel():
                yield Sample(reason, (x, *state()), every_layout=True, large=large)
    yield Sample("half of the channels", (noise(2, 8, 5, 5)[:, ::2], *state()))
    yield Sample("states of one element", (noise(9), *state(1)), {"beta": 0.0})
    values = special_values()
    finite = values[values.isfinite()]
    for batch in (finite, finite * 1e-30, values[2:3], values[3:4], values[:1], values):
        for repeats in (1, 300):
            tensors = batch.repeat(repeats), *state()
            for factors in ((1.0,), (1.0, 1e-30)):
                options = {"factors": factors, "beta": 0.9}
                yield Sample("special values", tensors, options, special=True)


def oracle(
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    step: torch.Tensor,
    *,
    beta: float = 0.7,
    factors: tuple[float, ...] = (1.0, -4.0),
    sliced: bool = True,
) -> tuple[torch.Tensor, ...]:
    """The definition, each operation rounded to float32 on its own."""
    batches = [(x.float() * factor).flatten() for factor in factors]
    if sliced:
        batches.append((x[:1] if x.ndim else x).float().flatten())
    weights = constant(beta), constant(1 - beta)
    bounds = [low.float(), high.float()]
    for batch in batches:
        extrema = batch.min(), batch.max()
        bounds = [
            bound * weights[0] + extremum * weights[1]
            for bound, extremum in zip(bounds, extrema, strict=True)
        ]
    return *bounds, step + len(batches)


def nearest(x: torch.Tensor, *_: torch.Tensor) -> Any:
    """ATen's extrema, which are averaged nowhere."""
    return lambda: torch.aminmax(x)


CASE = OpCase(
    name="update_range",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(EXACT, EXACT, EXACT),
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
    maps=False,
    nearest=Nearest("aminmax", nearest, lambda n, *x: n.update_range(*x)),
)
