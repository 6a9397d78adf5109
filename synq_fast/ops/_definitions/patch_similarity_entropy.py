"""Patch similarity entropy, alone and together with its gradient."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from synq_fast.ops._op import Op, once_only
from synq_fast.ops._patch_tokens import check_density, check_tokens

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _fake(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Tensor:
    check_tokens(tokens)
    check_density(points, bandwidth, eps)
    return tokens.new_empty(tokens.shape[:1], dtype=torch.float32)


def _fake_with_gradient(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Pair:
    entropy = _fake(tokens, points, bandwidth, eps)
    return entropy, tokens.new_empty(tokens.shape, dtype=torch.float32)


def _reference(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Tensor:
    check_tokens(tokens)
    check_density(points, bandwidth, eps)
    return reference.patch_similarity_entropy(
        tokens.float(), points=points, bandwidth=bandwidth, eps=eps
    )


def _reference_with_gradient(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Pair:
    with torch.enable_grad():
        leaf = tokens.detach().float().contiguous().requires_grad_()
        entropy = _reference(leaf, points, bandwidth, eps)
        (gradient,) = torch.autograd.grad(entropy.sum(), leaf)
    return entropy.detach(), gradient.contiguous()


def _weighted(gradient: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.is_grad_enabled():
        raise once_only("patch_similarity_entropy")
    return (gradient * weight[:, None, None]).to(dtype)


def _autograd(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tokens, *ctx.parameters = inputs
        ctx.save_for_backward(tokens)

    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        op = getattr(torch.ops.synq_fast.patch_similarity_entropy_with_gradient, suffix)
        with torch.no_grad():
            gradient = op(tokens, *ctx.parameters)[1]
        return _weighted(gradient, weight, tokens.dtype), None, None, None

    return setup, backward


def _autograd_with_gradient(suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.dtype = inputs[0].dtype

    def backward(ctx: Any, weight: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return _weighted(gradient, weight, ctx.dtype), None, None, None

    return setup, backward


_ARGUMENTS = "(Tensor tokens, int points, float bandwidth, float eps)"

OPS = {
    "patch_similarity_entropy": Op(
        f"{_ARGUMENTS} -> Tensor", _fake, _reference, _autograd, triton_arguments=4
    ),
    # The gradient is that of the entropies' sum; images share no gradient, so each image's part is
    # the gradient of its own entropy.
    "patch_similarity_entropy_with_gradient": Op(
        f"{_ARGUMENTS} -> (Tensor, Tensor)",
        _fake_with_gradient,
        _reference_with_gradient,
        _autograd_with_gradient,
        triton_arguments=4,
    ),
}
