"""The typical call of every op, for what holds for all of them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from synq_fast.testing import CASES, Sample


@functools.cache
def sample_of(name: str) -> Sample:
    """Made once: some transforms of functions refuse random numbers inside them."""
    return CASES[name].typical()


def tensors_of(name: str) -> list[torch.Tensor]:
    """The tensors of a call, the same every time."""
    return [x.clone() for x in sample_of(name).tensors]


def differentiable(name: str) -> int:
    """How many of them get gradients."""
    return min(CASES[name].differentiable, len(tensors_of(name)))


def function_of(name: str, variant: Mapping[str, Any] = {}) -> Callable[..., Any]:
    """The call of `function(ops or reference, *tensors)`, with other options where asked for."""
    case, options = CASES[name], {**sample_of(name).options, **variant}
    return lambda namespace, *tensors: case.call(namespace, *tensors, **options)


def results_of(
    name: str, namespace: Any, tensors: list[torch.Tensor], variant: Mapping[str, Any] = {}
) -> list[torch.Tensor]:
    """Calls the op and returns what it gives as a list."""
    results = function_of(name, variant)(namespace, *tensors)
    return list(results) if isinstance(results, tuple) else [results]
