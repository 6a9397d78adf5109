"""What is said once about a registered op."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Op:
    """One registered op.

    Attributes:
        schema: Arguments and results, without the name.
        fake: Checks the arguments and returns empty results, for tracing.
        reference: The op on any device in plain PyTorch, without autograd.
        backward: `(suffix) -> (setup_context, backward)`; used where autograd is not in C++. None
            for an op whose results are constants to autograd.
        triton_arguments: How many leading arguments the Triton launcher takes.
    """

    schema: str
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    backward: Callable[[str], tuple[Callable[..., None], Callable[..., Any]]] | None
    triton_arguments: int


def like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gives a reference result the strides that the kernels and the fakes give."""
    wanted = torch.empty_like(x, dtype=y.dtype)
    return y.clone() if wanted.stride() == y.stride() else wanted.copy_(y)
