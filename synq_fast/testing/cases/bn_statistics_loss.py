"""The losses of one layer on its stored statistics."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise, uniform
from synq_fast.testing.cases._statistics import layers, loss_terms, nearest, stored

LOSS = Tolerance(atol=1e-7, rtol=1e-5)
# What is far below the typical gradient is rounded to a unit of x, over the number of elements.
GRADIENT = Tolerance(of_largest=3e-6, atol=4e-6)


def call(namespace: Any, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> Any:
    """Calls the op."""
    return namespace.bn_statistics_loss(x, mean, var)


def inputs() -> Iterator[Sample]:
    """Yields layers, some far from zero, where a variance could cancel."""
    yield Sample("typical", (noise(3, 4, 5, seed=1), noise(4), uniform(4)))
    yield from layers()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = noise(8, 4, 8, 8, mean=100.0).to(memory_format=memory_format)
        yield Sample("a far mean", (x, *stored(4)), beyond_reference=True)
        for mean in (0.0, 1e4):
            x = noise(8, 4, 40, 40, mean=1e4).to(memory_format=memory_format)
            tensors = x, torch.full_like(noise(4), mean), torch.full_like(noise(4), 0.5)
            yield Sample("a far mean costs no accuracy", tensors, large=True, beyond_reference=True)
    x, (_, var) = torch.full_like(noise(4, 2, 3, 3), 1.5), stored(2)
    yield Sample("a constant channel has no gradient of the variance", (x, noise(2), var))


def units(sample: Sample) -> tuple[Any, ...]:
    """A unit in the last place of x moves a mean, whose error is squared."""
    x = sample.tensors[0]
    far = float(x.double().nan_to_num(0, 0, 0).abs().mean())
    return 1.0 + 0.1 * far, 1.0, 1 / x.numel()


CASE = OpCase(
    name="bn_statistics_loss",
    call=call,
    inputs=inputs,
    oracle=loss_terms,
    values=(LOSS, LOSS),
    gradients=(GRADIENT,),
    units=units,
    maps=False,
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
    nearest=Nearest("var_mean", nearest),
)
