"""The range that a moving average stands for."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import OpCase, Sample, Tolerance, constant, nbytes
from synq_fast.testing.cases.update_range import state

# One rounding each of the power, the difference and the quotient.
RANGE = Tolerance(atol=1e-7, rtol=2e-6)


def call(
    namespace: Any, low: torch.Tensor, high: torch.Tensor, step: torch.Tensor, beta: float = 0.9
) -> Any:
    """Calls the function."""
    return namespace.read_range(low, high, step, beta)


def inputs() -> Iterator[Sample]:
    """Yields states after few and many steps."""
    for steps in (3, 1, 1000):
        number = torch.tensor(steps, device="cpu")
        for beta in (0.9, 0.0, 0.9999):
            tensors = constant(-0.3), constant(0.4), number
            yield Sample(f"{steps} steps", tensors, {"beta": beta})
    yield Sample("before the first update", state(1), special=True)


def oracle(
    low: torch.Tensor, high: torch.Tensor, step: torch.Tensor, beta: float = 0.9
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition."""
    correction = 1 - beta ** step.double()
    return low / correction, high / correction


CASE = OpCase(
    name="read_range",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(RANGE, RANGE),
    bytes_moved=lambda sample: 2 * nbytes(*sample.tensors[:2]),
    cast=(),
    laid_out=(),
)
