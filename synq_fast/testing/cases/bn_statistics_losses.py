"""The weighted mean of the losses of a network's layers."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import OpCase, Sample, Tolerance, nbytes, noise, uniform
from synq_fast.testing.cases._statistics import layers, loss_terms, stored
from synq_fast.testing.cases.bn_statistics_loss import GRADIENT


def call(
    namespace: Any,
    x: torch.Tensor,
    y: torch.Tensor,
    *statistics: torch.Tensor,
    weights: tuple[float, ...] | None = (0.5, 2.0),
) -> torch.Tensor:
    """Calls the op on two layers."""
    means, variances = statistics[::2], statistics[1::2]
    loss: torch.Tensor = namespace.bn_statistics_losses(
        [x, y], list(means), list(variances), None if weights is None else list(weights)
    )
    return loss


def inputs() -> Iterator[Sample]:
    """Yields pairs of layers."""
    both = noise(4), uniform(4)
    tensors: tuple[torch.Tensor, ...]
    tensors = noise(3, 4, 5, seed=1), noise(2, 4, seed=2), *both, *both
    yield Sample("typical", tensors)
    other = noise(4, 8, seed=5), stored(8)
    for sample in layers():
        x, *statistics = sample.tensors
        pair = x, other[0], *statistics, *other[1]
        yield sample._replace(tensors=pair, every_layout=x.ndim == 4 and sample.every_layout)
    x, *statistics = next(iter(layers())).tensors
    pair = x, other[0], *statistics, *other[1]
    yield Sample("no weights", pair, {"weights": None})
    broken = torch.full_like(other[0], float("nan"))
    tensors = noise(4, 3, 5, 5), broken, *stored(3), *stored(8)
    yield Sample("a layer of weight 0 is not read", tensors, {"weights": (1.5, 0.0)})


def oracle(
    x: torch.Tensor,
    y: torch.Tensor,
    *statistics: torch.Tensor,
    weights: tuple[float, ...] | None = (0.5, 2.0),
) -> torch.Tensor:
    """The definition, layer by layer."""
    total = x.new_zeros(())
    layers = zip((x, y), statistics[::2], statistics[1::2], weights or (1.0, 1.0), strict=True)
    for value, mean, var, weight in layers:
        if weight != 0:
            mean_loss, var_loss = loss_terms(value, mean, var)
            total = total + weight / 2 * (mean_loss + var_loss)
    return total


CASE = OpCase(
    name="bn_statistics_losses",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(Tolerance(atol=1e-6, rtol=1e-5),),
    gradients=(GRADIENT, GRADIENT),
    maps=False,
    bytes_moved=lambda sample: nbytes(*sample.tensors[:2]),
    units=lambda sample: (1.0, *(2 / x.numel() for x in sample.tensors[:2])),
    cast=(0, 1),
)
