"""Mean and mean square of every channel of every image."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._checks import DTYPES
from synq_fast.ops._op import Op, differentiable_once, like

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _check(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, C, ...), got {tuple(x.shape)}")


def _fake(x: Tensor) -> Pair:
    _check(x)
    mean, mean_square = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return mean, mean_square


def _fake_backward(of_mean: Tensor | None, of_square: Tensor | None, x: Tensor) -> Tensor:
    _check(x)
    for name, gradient in (("mean", of_mean), ("mean_square", of_square)):
        if gradient is None:
            continue
        if gradient.shape != x.shape[:2] or gradient.dtype != torch.float32:
            raise ValueError(
                f"the gradient of {name} must be float32 of shape {tuple(x.shape[:2])}, got "
                f"{gradient.dtype} {tuple(gradient.shape)}"
            )
    return torch.empty_like(x)


def _reference(x: Tensor) -> Pair:
    _check(x)
    mean, mean_square = reference.channel_moments(x)
    return mean, mean_square


def _reference_backward(of_mean: Tensor | None, of_square: Tensor | None, x: Tensor) -> Tensor:
    _fake_backward(of_mean, of_square, x)
    shape = (*x.shape[:2], *(1 for _ in x.shape[2:]))
    positions = max(x.shape[2:].numel(), 1)
    result = torch.zeros_like(x, dtype=torch.float32)
    if of_square is not None:
        result = x.float() * (of_square * 2 / positions).reshape(shape)
    if of_mean is not None:
        result = result + (of_mean / positions).reshape(shape)
    return like(result.to(x.dtype), x)


def _autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Tensor], output: Pair) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0])

    def backward(ctx: Any, of_mean: Tensor | None, of_square: Tensor | None) -> Tensor | None:
        if of_mean is None and of_square is None:
            return None
        op = getattr(torch.ops.synq_fast.channel_moments_backward, suffix)
        result: Tensor = op(of_mean, of_square, *ctx.saved_tensors)
        return result

    return setup, backward


OPS = {
    "channel_moments": Op(
        "(Tensor x) -> (Tensor mean, Tensor mean_square)",
        _fake,
        _reference,
        _autograd,
        triton_arguments=1,
    ),
    "channel_moments_backward": Op(
        "(Tensor? of_mean, Tensor? of_square, Tensor x) -> Tensor",
        _fake_backward,
        _reference_backward,
        differentiable_once("channel_moments"),
        triton_arguments=3,
    ),
}
