"""What is said once about a registered op."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from synq_fast.reference._forward_mode import in_forward_mode


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


def check_gradient(grad: torch.Tensor, x: torch.Tensor) -> None:
    """Raises unless an incoming gradient has the shape of `x`."""
    if grad.shape != x.shape:
        raise ValueError(f"grad has shape {tuple(grad.shape)} but x has {tuple(x.shape)}")


def once_only(name: str) -> NotImplementedError:
    """Returns the error of a second derivative; csrc/ops/autograd.h says the same.

    NotImplementedError is what torch itself raises where a derivative is missing.
    """
    return NotImplementedError(f"{name} can be differentiated once")


def refuse_forward_mode(name: str) -> None:
    """Raises inside a level of forward-mode differentiation; csrc/ops/autograd.h does the same.

    Below autograd tangents can no longer be seen, so this does not look for any.
    """
    if in_forward_mode():
        raise NotImplementedError(
            f"synq_fast::{name} has no forward-mode derivative; call the function of the same name "
            "in synq_fast.ops, which then runs the reference, or use reverse mode"
        )


def differentiable_once(name: str) -> Callable[..., Any]:
    """Returns the autograd of a backward op that is not differentiable itself."""

    def autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            raise once_only(name)

        return setup, backward

    return autograd
